package evidence

import (
	"bytes"
	"encoding/hex"
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
