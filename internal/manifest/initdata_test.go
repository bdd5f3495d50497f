package manifest

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var awkward = []string{
	"", "{}", "'''", `"""`, `\`, `\u0000`, "a\tb\r\nc\rd", "\u2028\u2029\u0085\ufeff", "\x00\x01\x1f\x7f", "é\U0001f600\uffff\ufffd", "]\n[data]\n", `{"a":"\\\"'"}`,
}

func unwrap(t testing.TB, doc []byte) string {
	var v struct {
		Version, Algorithm string
		Data               map[string]string
	}
	md, err := toml.Decode(string(doc), &v)
	if err != nil {
		t.Fatalf("%q: %v", doc, err)
	}
	if v.Version != "0.1.0" || v.Algorithm != "sha256" || len(v.Data) != 1 || len(md.Undecoded()) != 0 {
		t.Fatalf("%q: %+v", doc, v)
	}
	return v.Data["ampoule.json"]
}

func TestWrappedManifestsComeBackByteForByte(t *testing.T) {
	for _, raw := range awkward {
		if got := unwrap(t, Wrap([]byte(raw))); got != raw {
			t.Errorf("%q came back as %q", raw, got)
		}
	}
}

func FuzzWrap(f *testing.F) {
	for _, raw := range awkward {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc := Wrap(raw)
		if utf8.Valid(raw) {
			if got := unwrap(t, doc); got != string(raw) {
				t.Fatalf("%q came back as %q", raw, got)
			}
		}
		// As JSON carries it: any text at all inside a string.
		b, err := json.Marshal(string(raw))
		if err != nil {
			t.Fatal(err)
		}
		if got := unwrap(t, Wrap(b)); got != string(b) {
			t.Fatalf("%q came back as %q", b, got)
		}
	})
}

// The golden files are the format's test vectors: manifest, document, digest.
func TestWrapVectors(t *testing.T) {
	for _, name := range []string{"remote", "awkward"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		doc := Wrap(raw)
		digest := InitdataDigest(doc)
		for ext, got := range map[string][]byte{".toml": doc, ".sha256": []byte(hex.EncodeToString(digest[:]) + "\n")} {
			path := filepath.Join("testdata", name+ext)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s (-update rewrites it):\n%s", path, d)
			}
		}
	}
}

// The reference's own documents: what HOST_DATA holds is the digest, cut to 32 bytes where it is longer.
func TestInitdataDigestAgreesWithTheReferenceVectors(t *testing.T) {
	dir := "../../../shared/wire/vectors/kbs"
	b, err := os.ReadFile(filepath.Join(dir, "initdata.json"))
	if os.IsNotExist(err) {
		t.Skip("the reference vectors are not beside this checkout")
	}
	if err != nil {
		t.Fatal(err)
	}
	var vectors map[string]struct {
		Algorithm, Digest string
		HostData          string `json:"snp_host_data"`
		MRConfigID        string `json:"tdx_mrconfigid"`
	}
	if err := json.Unmarshal(b, &vectors); err != nil || len(vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(vectors), err)
	}
	for name, v := range vectors {
		doc, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		sum := InitdataDigest(doc)
		digest := sum[:]
		if v.Algorithm == "sha384" {
			long := sha512.Sum384(doc)
			digest = long[:]
		}
		padded := append(bytes.Clone(digest), make([]byte, 48-len(digest))...)
		got := []string{hex.EncodeToString(digest), hex.EncodeToString(digest[:32]), hex.EncodeToString(padded)}
		if d := cmp.Diff([]string{v.Digest, v.HostData, v.MRConfigID}, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}
