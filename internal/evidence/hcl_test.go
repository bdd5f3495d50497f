package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// TestRecordedHCLReports: what the hardware signed is over the variable data.
func TestRecordedHCLReports(t *testing.T) {
	for name, want := range map[string]struct {
		kind Kind
		user int // bytes of user data
	}{
		"az-snp-vtpm/hcl-report.bin": {AzSNPvTPM, 64},
		"hcl/hcl-report-snp.bin":     {AzSNPvTPM, 0},
		"az-tdx-vtpm/hcl-report.bin": {AzTDXvTPM, 64},
		"hcl/hcl-report-tdx.bin":     {AzTDXvTPM, 64},
	} {
		t.Run(name, func(t *testing.T) {
			raw := fixture(t, name)
			h, err := ParseHCL(raw)
			if err != nil {
				t.Fatal(err)
			}
			if h.Kind != want.kind || len(h.UserData) != want.user || h.AK.N.BitLen() != 2048 || h.AK.E != 65537 {
				t.Errorf("kind %s, %d bytes of user data, a key of %d bits", h.Kind, len(h.UserData), h.AK.N.BitLen())
			}
			data := h.Hardware[128:][:64] // REPORTDATA of a TDREPORT
			if h.Kind == AzSNPvTPM {
				r, err := ParseSNP(h.Hardware)
				if err != nil {
					t.Fatal(err)
				}
				data = r.ReportData[:]
			}
			if sum := sha256.Sum256(h.VarData); !bytes.Equal(sum[:], data[:32]) {
				t.Errorf("the hardware signed %x, the variable data have %x", data[:32], sum)
			}
			for n := range hclVarData + len(h.VarData) {
				if _, err := ParseHCL(raw[:n]); err == nil {
					t.Fatalf("a report cut to %d bytes is taken", n)
				}
			}
			if _, err := ParseHCL(raw[:hclVarData+len(h.VarData)]); err != nil {
				t.Errorf("without the zeros at its end: %v", err)
			}
		})
	}
	for _, name := range []string{"hcl/var-data.bin", "hcl/quote.bin", "snp/snp-report-v3-genoa.bin"} {
		if _, err := ParseHCL(fixture(t, name)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// testAK is the JWK of an odd number of 2048 bits, which is enough of a key to parse.
var testAK = `{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"` +
	base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 256)) + `"}`

func testVarData(userData []byte) string {
	return `{"keys":[` + testAK + `,{"kid":"HCLEkPub"}],"vm-configuration":{"secure-boot":true},"user-data":"` +
		strings.ToUpper(hex.EncodeToString(userData)) + `"}`
}

// testHCL makes a report over any hardware and variable data, some zeros behind it.
func testHCL(kind Kind, hardware []byte, vars string) []byte {
	b := make([]byte, hclRequest)
	copy(b, "HCLA")
	copy(b[hclHardware:], hardware)
	typ := map[Kind]uint32{AzSNPvTPM: 2, AzTDXvTPM: 4}[kind]
	for _, v := range []uint32{uint32(20 + len(vars)), 1, typ, 1, uint32(len(vars))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(append(b, vars...), 0, 0, 0)
}

func TestBadHCLReports(t *testing.T) {
	vars := testVarData(make([]byte, 64))
	edit := func(old, new string) []byte {
		s := strings.Replace(vars, old, new, 1)
		if s == vars {
			t.Fatalf("no %q in the variable data", old)
		}
		return testHCL(AzSNPvTPM, nil, s)
	}
	change := func(off int, v byte) []byte {
		b := testHCL(AzSNPvTPM, nil, vars)
		b[off] = v
		return b
	}
	if _, err := ParseHCL(testHCL(AzSNPvTPM, nil, vars)); err != nil {
		t.Fatal(err)
	}
	n := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 256))
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":                   {nil, "0 bytes"},
		"more than 16 KiB":          {append(change(0, 'H'), make([]byte, maxHCL)...), "16384"},
		"another magic":             {change(0, 'h'), "hCLA"},
		"a TEE to come":             {change(hclRequest+8, 3), "type 3"},
		"another hash":              {change(hclRequest+12, 2), "hash type 2"},
		"another version":           {change(hclRequest+4, 2), "version 2"},
		"a size that does not fit":  {change(hclRequest, 0), "with their header"},
		"data past the end":         {change(hclRequest+19, 0xff), "are there"},
		"no JSON":                   {testHCL(AzSNPvTPM, nil, "x"), "variable data"},
		"no keys":                   {edit(`"keys"`, `"Keys"`), "keys"},
		"a member twice":            {edit(`"user-data"`, `"keys":[],"user-data"`), "twice"},
		"no AK":                     {edit("HCLAkPub", "HCLXkPub"), "no key"},
		"two AKs":                   {edit("HCLEkPub", `HCLAkPub","x":"`), "twice"},
		"an AK of another type":     {edit(`"RSA"`, `"EC"`), "kty"},
		"a short AK":                {edit(n, n[:100]), "75 bytes"},
		"an AK with an even e":      {edit("AQAB", "AQAC"), "exponent"},
		"an AK with padding":        {edit(n, n+"=="), "base64"},
		"an AK with a line break":   {edit(n, n[:4]+`\n`+n[4:]), "base64"},
		"an AK with a member twice": {edit(`"kty"`, `"kty":"RSA","kty"`), "twice"},
		"many keys":                 {edit(`{"kid":"HCLEkPub"}`, strings.Repeat(`{},`, maxHCLKeys)+"{}"), "at most 16"},
		"user data that is no hex":  {edit(`"user-data":"0`, `"user-data":"x`), "user-data"},
		"user data null":            {edit(`"`+strings.Repeat("0", 128)+`"`, "null"), "0 bytes"},
		"65 bytes of user data":     {edit(`"user-data":"`, `"user-data":"00`), "65 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseHCL(c.raw); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	// The paravisor's word for it has a dash: the other spelling is no user data.
	if h, err := ParseHCL(edit("user-data", "user_data")); err != nil || h.UserData != nil {
		t.Errorf("user_data gives %x, %v", h.UserData, err)
	}
}

func FuzzHCL(f *testing.F) {
	for _, kind := range []Kind{AzSNPvTPM, AzTDXvTPM} {
		f.Add(testHCL(kind, []byte{3}, testVarData(make([]byte, 64))))
		f.Add(testHCL(kind, nil, fmt.Sprintf(`{"keys":[%s]}`, testAK)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHCL(b)
		if err != nil {
			return
		}
		if h.AK.Size() != 256 || len(h.UserData) > 64 || !bytes.Contains(b, h.VarData) || len(h.Hardware) < tdReport {
			t.Errorf("took %x", b)
		}
	})
}
