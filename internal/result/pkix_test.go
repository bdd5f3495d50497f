package result

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// pemPair is a fresh key as its recipient and its owner have it.
func pemPair(t *testing.T, key crypto.Signer) [2]string {
	t.Helper()
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return [2]string{
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})),
	}
}

func pkixKeys(t *testing.T) map[string][2]string {
	all := map[string][2]string{}
	for name, c := range map[string]elliptic.Curve{"EC P-256": elliptic.P256(), "EC P-384": elliptic.P384(), "EC P-521": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = pemPair(t, k)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	all["RSA"] = pemPair(t, r)
	all["RSA, PKCS #1"] = [2]string{all["RSA"][0], string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)}))}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all["Ed25519"] = pemPair(t, e)
	return all
}

// TestOneFileServesAll: one seal, and each recipient opens it alone.
func TestOneFileServesAll(t *testing.T) {
	keys := identities(t)
	delete(keys, "post-quantum") // which age does not mix with others
	for name, k := range pkixKeys(t) {
		keys[name] = k
	}
	var to []string
	for _, k := range keys {
		to = append(to, k[0])
	}
	var b bytes.Buffer
	w, err := Seal(&b, to)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "the result")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, k := range keys {
		ids, err := ParseIdentities([]byte(k[1]))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		r, err := Unseal(bytes.NewReader(b.Bytes()), ids)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "the result" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, k := range pkixKeys(t) {
		ids, err := ParseIdentities([]byte(k[1]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Unseal(bytes.NewReader(b.Bytes()), ids); err == nil {
			t.Errorf("another %s key opens it", name)
		}
	}
}

func TestPKIXRecipientsThatAreRefused(t *testing.T) {
	keys := pkixKeys(t)
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"two keys":             keys["RSA"][0] + keys["EC P-256"][0],
		"something behind it":  keys["RSA"][0] + "x",
		"a header":             strings.Replace(keys["RSA"][0], "-----\n", "-----\na: b\n\n", 1),
		"half of one":          keys["RSA"][0][:100],
		"no key in it":         "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"an RSA key of 1024":   pemPair(t, short)[0],
		"a curve of 224 bits":  pemPair(t, p224)[0],
		"a private key":        keys["RSA"][1],
		"a certificate's name": "-----BEGIN CERTIFICATE-----\n",
	} {
		err := CheckRecipient(s)
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), strings.Split(s, "\n")[1]) && len(strings.Split(s, "\n")[1]) > 0 {
			t.Errorf("%s: quoted in %v", name, err)
		}
	}
}

// TestStanzaVector opens the example of docs/RESULTS.md.
func TestStanzaVector(t *testing.T) {
	for name, key := range map[string]string{"ec.age": "ec.pem", "rsa.age": "rsa.pem"} {
		priv, err := os.ReadFile(filepath.Join("testdata", key))
		if errors.Is(err, os.ErrNotExist) && *update {
			makeVector(t, name, key)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		ids, err := ParseIdentities(priv)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Unseal(bytes.NewReader(b), ids)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "the result\n" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestReaderOfTheDocumentation runs the Python of docs/RESULTS.md.
func TestReaderOfTheDocumentation(t *testing.T) {
	if err := exec.Command("python3", "-c", "import cryptography").Run(); err != nil {
		t.Skipf("no python3 with cryptography: %v", err)
	}
	doc, err := os.ReadFile("../../docs/RESULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(doc)
	if code == nil {
		t.Fatal("there is no Python")
	}
	for _, name := range []string{"ec", "rsa"} {
		out, err := exec.Command("python3", "-c", string(code[1]), "testdata/"+name+".pem", "testdata/"+name+".age").CombinedOutput()
		if err != nil || string(out) != "the result\n" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	header, err := os.ReadFile("testdata/ec.age")
	if err != nil {
		t.Fatal(err)
	}
	if header, _, _ = bytes.Cut(header, []byte("\n--- ")); !bytes.Contains(doc, header) {
		t.Error("the stanza of the documentation is another than that of ec.age")
	}
}

func makeVector(t *testing.T, name, file string) {
	var key crypto.Signer
	var err error
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); name == "rsa.age" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	pair := pemPair(t, key)
	var b bytes.Buffer
	w, err := Seal(&b, []string{pair[0]})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "the result\n")
	if err := errors.Join(w.Close(), os.WriteFile(filepath.Join("testdata", file), []byte(pair[1]), 0o644), os.WriteFile(filepath.Join("testdata", name), b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestStanzasThatAreRefused(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(plain string, alg jose.KeyAlgorithm, enc jose.ContentEncryption, o *jose.EncrypterOptions) string {
		e, err := jose.NewEncrypter(enc, jose.Recipient{Algorithm: alg, Key: k.Public()}, o)
		if err != nil {
			t.Fatal(err)
		}
		j, err := e.Encrypt([]byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		s, err := j.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const key = "0123456789abcdef"
	good := make(key, jose.ECDH_ES_A256KW, jose.A256GCM, nil)
	id := &pkixIdentity{k, "print"}
	unwrap := func(body string) ([]byte, error) {
		return id.Unwrap([]*age.Stanza{{Type: stanzaType, Args: []string{"other"}, Body: []byte("x")}, {Type: stanzaType, Args: []string{"print"}, Body: []byte(body)}})
	}
	if got, err := unwrap(good); err != nil || string(got) != key {
		t.Fatalf("go-jose's own: %q, %v", got, err)
	}
	for name, body := range map[string]string{
		"nothing":             "",
		"four parts":          good[:strings.LastIndexByte(good, '.')],
		"an altered tag":      good[:len(good)-2] + "AA",
		"compression":         make(key, jose.ECDH_ES_A256KW, jose.A256GCM, &jose.EncrypterOptions{Compression: jose.DEFLATE}),
		"a header more":       make(key, jose.ECDH_ES_A256KW, jose.A256GCM, (&jose.EncrypterOptions{}).WithType("x")),
		"another way to wrap": make(key, jose.ECDH_ES_A128KW, jose.A256GCM, nil),
		"another cipher":      make(key, jose.ECDH_ES_A256KW, jose.A128GCM, nil),
		"a long key":          make(key+key, jose.ECDH_ES_A256KW, jose.A256GCM, nil),
		"more than is read":   strings.Repeat("x", maxJWE+1),
	} {
		if got, err := unwrap(body); err == nil {
			t.Errorf("%s: taken, as %q", name, got)
		}
	}
	if _, err := (&pkixIdentity{k, "third"}).Unwrap([]*age.Stanza{{Type: stanzaType, Args: []string{"print"}, Body: []byte(good)}}); !errors.Is(err, age.ErrIncorrectIdentity) {
		t.Errorf("for another key: %v, want to go on with the next identity", err)
	}
}

func FuzzStanza(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	s, err := (&pkix{&k.PublicKey, "print"}).Wrap([]byte("0123456789abcdef"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s[0].Body)
	f.Add([]byte("eyJhbGciOiJFQ0RILUVTK0EyNTZLVyJ9.a.b.c.d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := (&pkixIdentity{k, "print"}).Unwrap([]*age.Stanza{{Type: stanzaType, Args: []string{"print"}, Body: b}}); err == nil && len(got) != fileKeySize {
			t.Errorf("a file key of %d bytes", len(got))
		}
	})
}

// TestDebianAgeOpens: what is sealed here is age's own format, beside stanzas of ours too.
func TestDebianAgeOpens(t *testing.T) {
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "bookworm", []string{"age", "zstd"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skipf("no age to compare with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	keys, dir := identities(t), t.TempDir()
	to := []string{keys["X25519"][0], keys["ssh-ed25519"][0]}
	for _, k := range pkixKeys(t) {
		to = append(to, k[0])
	}
	path := filepath.Join(dir, SealedName)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(f, to, Tree{Dir: tree(t), Limit: 1 << 20}, extras); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"X25519", "ssh-ed25519"} {
		id, packed := filepath.Join(dir, name), filepath.Join(dir, name+".zst")
		if err := os.WriteFile(id, []byte(keys[name][1]), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := root.Command(t.Context(), "age", "-d", "-i", id, "-o", packed, path).CombinedOutput(); err != nil {
			t.Errorf("%s: age: %v\n%s", name, err, out)
			continue
		}
		plain, err := root.Command(t.Context(), "zstd", "-dc", packed).Output()
		if err != nil {
			t.Errorf("%s: zstd: %v", name, err)
		}
		if err := ExtractTar(bytes.NewReader(plain), filepath.Join(dir, name+"-opened"), 1<<20); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
