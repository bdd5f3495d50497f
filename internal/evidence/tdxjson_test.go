package evidence

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTDXEvidence(t *testing.T) {
	quote := fixture(t, "ccel/cos-113-tdx-quote.dat")
	log, err := CutEventLog(fixture(t, "ccel/ccel_data.dat"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Evidence{{Kind: TDX, Report: quote}, {Kind: TDX, Report: quote, EventLog: log}} {
		b, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if e.EventLog == nil && !strings.HasPrefix(string(b), `{"cc_eventlog":null,"quote":"BAA`) {
			t.Errorf("without a log: %.60s", b)
		}
		back, err := FromJSON(TDX, b)
		if diff := cmp.Diff(e, back); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	q := base64.StdEncoding.EncodeToString(quote)
	for name, text := range map[string]string{
		"no quote":                   `{"cc_eventlog":null}`,
		"a further member":           `{"quote":"` + q + `","x":1}`,
		"base64url":                  `{"quote":"` + base64.RawURLEncoding.EncodeToString(quote) + `"}`,
		"a quote that is none":       `{"quote":"AAAA"}`,
		"a line break in base64":     `{"quote":"` + q[:4] + `\n` + q[4:] + `"}`,
		"null for the quote":         `{"quote":null}`,
		"dashes in names":            `{"cc-eventlog":null,"quote":"` + q + `"}`,
		"a log that is none":         `{"quote":"` + q + `","cc_eventlog":"AAAA"}`,
		"an array of numbers":        `{"quote":[4,0]}`,
		"cut after the header":       `{"quote":"` + q[:64] + `"}`,
		"an SNP report in its place": `{"attestation_report":{}}`,
	} {
		if _, err := FromJSON(TDX, []byte(text)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := (Evidence{Kind: TDX, Report: quote[:100]}).JSON(); err == nil {
		t.Error("a cut quote is sent")
	}
}

// TestLaunchRegisters: one digest, in the form of each register (wire/SPEC.md §3).
func TestLaunchRegisters(t *testing.T) {
	digest := sha256.Sum256([]byte("initdata"))
	extended := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	var r TDXReport
	r.MRTD[0], r.MRConfigID = 7, [48]byte(append(digest[:], make([]byte, 16)...))
	quote := append(append(testQuoteHeader(), r.Marshal()...), 0, 0, 0, 0)
	l, err := Evidence{Kind: TDX, Report: quote}.Launch()
	if err != nil || l.Register != MRConfigID || l.Measurement[0] != 7 || !l.Holds(digest) || l.Empty() || !l.FixedAtLaunch() {
		t.Errorf("%+v, %v", l, err)
	}
	snp := SNPReport{Version: 3, HostData: digest}
	if l, err := (Evidence{Kind: SNP, Report: snp.Marshal()}).Launch(); err != nil || !l.Holds(digest) || l.Register != HostData {
		t.Errorf("%+v, %v", l, err)
	}
	for name, c := range map[string]struct {
		l    Launch
		want bool
	}{
		"PCR 8 extended":           {Launch{Register: PCR8, InitData: extended[:]}, true},
		"PCR 8 set":                {Launch{Register: PCR8, InitData: digest[:]}, false},
		"HOST_DATA extended":       {Launch{Register: HostData, InitData: extended[:]}, false},
		"MRCONFIGID with a tail":   {Launch{Register: MRConfigID, InitData: append(bytes.Clone(digest[:]), bytes.Repeat([]byte{1}, 16)...)}, false},
		"a kind without registers": {Launch{}, false},
	} {
		if got := c.l.Holds(digest); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if l, err := (Evidence{Kind: Sample, Report: make([]byte, 64)}).Launch(); err != nil || !l.Empty() || l.Register != "" {
		t.Errorf("sample: %+v, %v", l, err)
	}
	if _, err := (Evidence{Kind: "sgx"}).Launch(); err == nil {
		t.Error("an unknown kind has a launch")
	}
}

func testQuoteHeader() []byte {
	b := make([]byte, 48)
	b[0], b[2], b[4] = 4, 2, 0x81
	return b
}

// TestRecordedRegisters: what each register holds of the recorded initdata documents.
func TestRecordedRegisters(t *testing.T) {
	var vectors map[string]struct {
		Algorithm  string `json:"algorithm"`
		Digest     string `json:"digest"`
		HostData   string `json:"snp_host_data"`
		MRConfigID string `json:"tdx_mrconfigid"`
		PCR8       string `json:"azure_pcr8"`
	}
	if err := json.Unmarshal(shared(t, "vectors/kbs/initdata.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 2 {
		t.Fatalf("%d documents, want 2", len(vectors))
	}
	for name, v := range vectors {
		digest, err := hex.DecodeString(v.Digest)
		if err != nil {
			t.Fatal(err)
		}
		// The digest is over the bytes of the document as they are, its last line break included.
		document := shared(t, "vectors/kbs/"+name)
		sum256, sum384 := sha256.Sum256(document), sha512.Sum384(document)
		if got := map[string][]byte{"sha256": sum256[:], "sha384": sum384[:]}[v.Algorithm]; !bytes.Equal(got, digest) {
			t.Errorf("%s has the digest %x, want %x", name, got, digest)
		}
		for register, want := range map[string]string{HostData: v.HostData, MRConfigID: v.MRConfigID, PCR8: v.PCR8, RTMR3: "", "": ""} {
			if got := hex.EncodeToString(InRegister(register, digest)); got != want {
				t.Errorf("%s in %q: %s, want %s", name, register, got, want)
			}
		}
	}
}
