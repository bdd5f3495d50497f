package evidence

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// fixture reads a file of real evidence, or skips.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/wire/fixtures", name))
	if os.IsNotExist(err) {
		t.Skip("the recorded evidence in ../shared is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedTDXQuotes(t *testing.T) {
	for name, want := range map[string]struct {
		version, body int
	}{
		"tdx/tdx_quote_4.dat":                        {4, 10},
		"tdx/tdx_quote_5.dat":                        {5, 15},
		"tdx/tdx_quote_6.dat":                        {4, 10},
		"tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat": {4, 10},
		"tdx/go-tdx-guest-quote_v5_sample.dat":       {5, 15},
		"ccel/cos-113-tdx-quote.dat":                 {4, 10},
	} {
		t.Run(name, func(t *testing.T) {
			raw := fixture(t, name)
			q, err := ParseTDX(raw)
			if err != nil {
				t.Fatal(err)
			}
			if q.Version != want.version || q.BodyVersion != want.body {
				t.Errorf("version %d with a body of TDX %d, want %d and %d", q.Version, q.BodyVersion, want.version, want.body)
			}
			if q.Report.MRTD == [48]byte{} || q.Report.XFAM == 0 {
				t.Errorf("MRTD %x, attributes %#x, XFAM %#x", q.Report.MRTD, q.Report.Attributes, q.Report.XFAM)
			}
			body := q.Signed[len(q.Signed)-map[int]int{10: 584, 15: 648}[want.body]:]
			if !bytes.Equal(q.Report.Marshal(), body[:584]) {
				t.Errorf("Marshal does not give back the body")
			}
			for n := range len(q.Signed) + 4 + len(q.Auth) {
				if _, err := ParseTDX(raw[:n]); err == nil {
					t.Fatalf("a quote cut to %d bytes is taken", n)
				}
			}
			padded, err := ParseTDX(append(bytes.Clone(raw[:len(q.Signed)+4+len(q.Auth)]), 0, 1))
			if err != nil || !bytes.Equal(padded.Auth, q.Auth) {
				t.Errorf("with bytes behind it: %v", err)
			}
		})
	}
}

// TestTrusteeReadsTheSame: Trustee's own test has the claims of one quote.
func TestTrusteeReadsTheSame(t *testing.T) {
	q, err := ParseTDX(fixture(t, "tdx/tdx_quote_4.dat"))
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Quote struct{ Header, Body map[string]string }
	}
	if err := json.Unmarshal(fixture(t, "tdx/parse_tdx_claims_expected.json"), &claims); err != nil {
		t.Fatal(err)
	}
	r, le := &q.Report, binary.LittleEndian
	got := map[string][]byte{
		"tcb_svn": r.TEETCBSVN[:], "mr_seam": r.MRSeam[:], "mrsigner_seam": r.MRSignerSeam[:], "mr_td": r.MRTD[:],
		"mr_config_id": r.MRConfigID[:], "mr_owner": r.MROwner[:], "mr_owner_config": r.MROwnerConfig[:],
		"rtmr_0": r.RTMR[0][:], "rtmr_1": r.RTMR[1][:], "rtmr_2": r.RTMR[2][:], "rtmr_3": r.RTMR[3][:], "report_data": r.ReportData[:],
		"seam_attributes": le.AppendUint64(nil, r.SeamAttributes), "td_attributes": le.AppendUint64(nil, r.Attributes),
		"xfam": le.AppendUint64(nil, r.XFAM),
	}
	if len(claims.Quote.Body) != len(got) {
		t.Errorf("%d claims, want %d", len(claims.Quote.Body), len(got))
	}
	for name, want := range claims.Quote.Body {
		if hex.EncodeToString(got[name]) != want {
			t.Errorf("%s is %x, want %s", name, got[name], want)
		}
	}
	if h := claims.Quote.Header; hex.EncodeToString(q.QEVendorID[:]) != h["vendor_id"] || hex.EncodeToString(q.UserData[:]) != h["user_data"] {
		t.Errorf("vendor %x with user data %x, want %v", q.QEVendorID, q.UserData, h)
	}
	// What is beside the quotes and is none.
	for _, name := range []string{"tdx/go-tdx-guest-report.dat", "hcl/hcl-report-tdx.bin", "ccel/ccel_data.dat"} {
		if _, err := ParseTDX(fixture(t, name)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := ParseEventLog(fixture(t, "ccel/ccel_table.dat")); err == nil {
		t.Error("the ACPI table is taken for the log that it points to")
	}
}

func TestForeignQuotes(t *testing.T) {
	raw := make([]byte, 48+584+4)
	raw[0], raw[2], raw[4] = 4, 2, 0x81
	if _, err := ParseTDX(raw); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int{"version": 0, "key type": 2, "an SGX quote": 4, "length of the signature": 632} {
		b := bytes.Clone(raw)
		b[at] ^= 0x81
		if _, err := ParseTDX(b); err == nil {
			t.Errorf("another %s is taken", name)
		}
	}
	if _, err := ParseTDX(make([]byte, maxTDXQuote+1)); err == nil {
		t.Error("a quote over the limit is taken")
	}
	var r TDXReport
	for i := range r.RTMR {
		r.RTMR[i][0] = byte(i + 1)
	}
	r.Attributes, r.ReportData[63] = 1, 9
	var back TDXReport
	back.unmarshal(r.Marshal())
	if back != r {
		t.Errorf("round trip of %s", hex.EncodeToString(r.Marshal()))
	}
}

func FuzzTDX(f *testing.F) {
	raw := make([]byte, 48+584+4+2)
	raw[0], raw[2], raw[4], raw[632] = 4, 2, 0x81, 2
	f.Add(raw)
	v5 := make([]byte, 48+6+648+4)
	v5[0], v5[2], v5[4], v5[48], v5[50], v5[51] = 5, 2, 0x81, 3, 0x88, 2
	f.Add(v5)
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseTDX(b)
		if err != nil {
			return
		}
		if len(q.Signed)+4+len(q.Auth) > len(b) || !bytes.Contains(q.Signed, q.Report.Marshal()) {
			t.Errorf("%d signed bytes and %d of signature out of %d", len(q.Signed), len(q.Auth), len(b))
		}
	})
}
