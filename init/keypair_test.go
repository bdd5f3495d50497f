package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// publishTo pushes a dataset that is for these recipients.
func (f *flow) publishTo(name string, to ...image.Recipient) string {
	f.Helper()
	img, err := demo.Image(map[string]string{"table.csv": "1\n"}, config)
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := image.EncryptFor(f.Context(), img, to, nil)
	if err != nil {
		f.Fatal(err)
	}
	uri, err := f.world.Push(f.Context(), sealed, name)
	if err != nil {
		f.Fatal(err)
	}
	return strings.Replace(uri, "10.0.2.2", "127.0.0.1", 1)
}

// privateKey is a resource at the broker.
func (f *flow) privateKey(path string, k crypto.PrivateKey) {
	f.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		f.Fatal(err)
	}
	if err := f.world.SetKey(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		f.Fatal(err)
	}
}

// TestKeyPairs: images for JWE and PKCS #7 keys, whose private halves the broker has where the manifest says, and images
// for several.
func TestKeyPairs(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public := func(k crypto.PublicKey) image.Recipient {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		to, err := image.ForPublicKey(der)
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "guest"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rsaKey.PublicKey, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := image.ForCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := image.ForKey(image.NewKey(), "kbs:///somebody/else/key", image.EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := image.ForKey(image.NewKey(), "kbs://kbs.example/somebody/else/key", image.EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		to     []image.Recipient
		key    crypto.PrivateKey
		step   string
		reason result.Reason
		log    string
	}{
		"JWE for EC":                             {[]image.Recipient{public(&ec.PublicKey)}, ec, "", result.OK, ""},
		"JWE for RSA":                            {[]image.Recipient{public(&rsaKey.PublicKey)}, rsaKey, "", result.OK, ""},
		"PKCS #7":                                {[]image.Recipient{certificate}, rsaKey, "", result.OK, ""},
		"JWE, and a key packet for somebody":     {[]image.Recipient{stranger, public(&ec.PublicKey)}, ec, "", result.OK, ""},
		"JWE, and one for somebody's own broker": {[]image.Recipient{elsewhere, public(&ec.PublicKey)}, ec, "", result.OK, ""},
		"JWE for another key":                    {[]image.Recipient{public(&ec.PublicKey)}, rsaKey, "pull", result.BadImage, "opens no recipient"},
		"a key packet for somebody alone":        {[]image.Recipient{stranger}, ec, "resolve", result.BadImage, "grants it"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.privateKey(demo.DatasetKey, c.key)
			f.swapDataset(f.publishTo("pair", c.to...))
			f.boot()
			f.ends(c.step, c.reason, c.step == "")
			if log := f.log(); !strings.Contains(log, c.log) {
				t.Errorf("the sealed log does not say %q:\n%s", c.log, log)
			}
		})
	}
	t.Run("a symmetric key where the private one should be", func(t *testing.T) {
		f := newFlow(t)
		f.swapDataset(f.publishTo("pair", public(&ec.PublicKey)))
		f.boot()
		f.ends("pull", result.BadImage, false)
		if log := f.log(); !strings.Contains(log, "has 32 bytes") {
			t.Errorf("the sealed log:\n%s", log)
		}
	})
	t.Run("by a tag, which the host could point at an image of its own", func(t *testing.T) {
		f := newFlow(t)
		f.line = strings.Replace(f.line, "allow=http", "allow=http,tag", 1)
		f.privateKey(demo.DatasetKey, ec)
		uri, _, _ := strings.Cut(f.publishTo("pair", public(&ec.PublicKey)), "@")
		f.swapDataset(uri)
		f.boot()
		f.ends("resolve", result.BadImage, false)
		if log := f.log(); !strings.Contains(log, "name the image's digest") || f.asked {
			t.Errorf("a broker was asked: %v; the sealed log:\n%s", f.asked, log)
		}
	})
}

// TestSecondRecipient: an image for two keys, of which the manifest grants the second.
func TestSecondRecipient(t *testing.T) {
	f := newFlow(t)
	b, err := os.ReadFile(filepath.Join(f.world.Dir, "kbs", "keys", filepath.FromSlash(demo.DatasetKey)))
	if err != nil {
		t.Fatal(err)
	}
	first, err := image.ForKey(image.NewKey(), "kbs:///somebody/else/key", image.EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := image.ForKey(b, "kbs:///"+demo.DatasetKey, image.EncryptOptions{PacketV2: true})
	if err != nil {
		t.Fatal(err)
	}
	f.swapDataset(f.publishTo("two", first, second))
	f.boot()
	f.ends("", result.OK, true)
}

// swapDataset names another dataset in the manifest.
func (f *flow) swapDataset(uri string) {
	f.Helper()
	_, rest, ok := strings.Cut(string(f.raw), "/dataset@")
	if !ok {
		f.Fatalf("the manifest has no dataset:\n%s", f.raw)
	}
	digest, _, _ := strings.Cut(rest, `"`)
	at := strings.TrimPrefix(uri, "docker://")
	host, _, _ := strings.Cut(at, "/")
	f.edit("docker://"+host+"/dataset@"+digest, uri)
}
