package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
)

// testAttest makes a TPMS_ATTEST.
func testAttest(extra []byte, pcrs [24][32]byte) []byte {
	h := sha256.New()
	for _, p := range pcrs {
		h.Write(p[:])
	}
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint32(nil, tpmGenerated), tpmAttestQuot)
	b = append(be.AppendUint16(b, 34), append([]byte{0, 11}, make([]byte, 32)...)...)
	b = append(be.AppendUint16(b, uint16(len(extra))), extra...)
	b = append(b, make([]byte, tpmClock)...)
	b = append(b, 0, 0, 0, 1, 0, 11, 3, 0xff, 0xff, 0xff, 0, 32)
	return h.Sum(b)
}

func TestRecordedTPMQuotes(t *testing.T) {
	for name, extra := range map[string]int{
		"az-snp-vtpm/evidence-v1.json": 9, "az-snp-vtpm/evidence-v2.json": azureData, "az-snp-vtpm/tpm-quote-v1.json": 9,
		"az-tdx-vtpm/evidence-v1.json": 9, "az-tdx-vtpm/tpm-quote-v1.json": 9,
	} {
		var doc struct {
			Quote *json.RawMessage `json:"tpm_quote"`
		}
		raw := json.RawMessage(fixture(t, name))
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Quote != nil {
			raw = *doc.Quote
		}
		f := open("", raw, []string{"signature", "message", "pcrs"}, nil)
		q := readQuote(f)
		if err := f.failure(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkQuote(t, name, &q, extra)
	}
	// The same in the form of another tool: the message lies between lengths of 8 bytes.
	for _, name := range []string{"az-snp-vtpm/quote.bin", "az-tdx-vtpm/quote.bin", "hcl/quote.bin"} {
		raw := fixture(t, name)
		at := bytes.Index(raw, []byte{0xff, 'T', 'C', 'G'})
		n := int(binary.LittleEndian.Uint64(raw[at-8:]))
		if a, err := ParseTPMAttest(raw[at:][:n]); err != nil || string(a.ExtraData) != "challenge" {
			t.Errorf("%s: %q, %v", name, a.ExtraData, err)
		}
		for i := range n {
			if _, err := ParseTPMAttest(raw[at:][:i]); err == nil {
				t.Fatalf("%s: cut to %d bytes it is taken", name, i)
			}
		}
	}
	if _, err := ParseTPMAttest(fixture(t, "az-snp-vtpm/tpm-quote.msg")); err == nil || !strings.Contains(err.Error(), "ff4000") {
		t.Errorf("a quote over nine PCRs: %v", err)
	}
}

// checkQuote holds a quote against its PCRs.
func checkQuote(t *testing.T, name string, q *TPMQuote, extra int) {
	t.Helper()
	a, err := ParseTPMAttest(q.Message)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	h := sha256.New()
	for _, p := range q.PCRs {
		h.Write(p[:])
	}
	if len(a.ExtraData) != extra || !bytes.Equal(h.Sum(nil), a.PCRDigest[:]) {
		t.Errorf("%s: %d bytes of data, digest %x, the PCRs have %x", name, len(a.ExtraData), a.PCRDigest, h.Sum(nil))
	}
}

func TestBadTPMQuotes(t *testing.T) {
	good := testAttest(make([]byte, azureData), [24][32]byte{})
	extra := 6 + 2 + 34
	selection := extra + 2 + azureData + tpmClock
	for name, c := range map[string]struct {
		off  int
		v    byte
		want string
	}{
		"another magic":          {0, 0xfe, "magic"},
		"a certificate of a key": {5, 0x17, "type 0x8017"},
		"a long name":            {7, 69, "too long"},
		"much data":              {extra + 1, 67, "too long"},
		"two banks":              {selection + 3, 2, "of 2 banks"},
		"SHA-1":                  {selection + 5, 4, "algorithm 0x4"},
		"a PCR left out":         {selection + 8, 0xfe, "fffeff"},
		"a selection of 2 bytes": {selection + 6, 2, "too long"},
		"a short digest":         {selection + 11, 31, "behind its end"},
		"a long digest":          {selection + 11, 33, "too long"},
	} {
		b := bytes.Clone(good)
		b[c.off] = c.v
		if _, err := ParseTPMAttest(b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	short := bytes.Clone(good[:len(good)-1])
	short[selection+11] = 31
	for name, b := range map[string][]byte{
		"a digest of 31 bytes": short, "a byte behind it": append(good, 0), "much": make([]byte, maxTPMAttest+1), "nothing": nil,
	} {
		if _, err := ParseTPMAttest(b); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzTPMAttest(f *testing.F) {
	f.Add(testAttest(make([]byte, azureData), [24][32]byte{}))
	f.Add(testAttest(nil, [24][32]byte{8: {1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseTPMAttest(b)
		if err == nil && (len(a.ExtraData) > maxTPMData || !bytes.HasSuffix(b, a.PCRDigest[:]) || !bytes.Contains(b, a.ExtraData)) {
			t.Errorf("took %x", b)
		}
	})
}
