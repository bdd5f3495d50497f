package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/keyprovider"
)

// skopeo is Debian's, beside a registry on the loopback and the key provider of this repository.
type skopeo struct {
	*testing.T
	root     *debian.Root
	dir      string // has layout, the image in clear
	registry string
	env      []string
	plain    v1.Image
}

// newSkopeo skips where the suite's skopeo cannot be had.
func newSkopeo(t *testing.T, suite string) *skopeo {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), suite, []string{"skopeo", "umoci"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("skopeo %s of Debian %s", root.Version("skopeo"), suite)
	s := &skopeo{T: t, root: root, dir: t.TempDir()}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	s.registry = strings.TrimPrefix(srv.URL, "http://")
	if s.plain, err = demo.Image(map[string]string{"algo": rand.Text(), "lib/more": strings.Repeat("x", 100_000)}, v1.Config{Entrypoint: []string{"/algo"}}); err != nil {
		t.Fatal(err)
	}
	if err := image.Save(s.plain, s.path("layout")); err != nil {
		t.Fatal(err)
	}
	s.env = append(os.Environ(), "OCICRYPT_KEYPROVIDER_CONFIG="+s.path("none"), "HOME="+s.dir, "TMPDIR="+s.dir)
	return s
}

func (s *skopeo) path(name string) string { return filepath.Join(s.dir, name) }

// provide starts the key provider, and says so in ocicrypt's configuration.
func (s *skopeo) provide(p *keyprovider.Provider) {
	s.Helper()
	l, err := listenLocal("127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- serveKeys(ctx, l, p) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	})
	s.configure(fmt.Sprintf(`{"grpc": %q}`, l.Addr()))
}

func (s *skopeo) configure(provider string) {
	s.Helper()
	file := s.path("ocicrypt.conf")
	if err := os.WriteFile(file, []byte(`{"key-providers": {"attestation-agent": `+provider+`}}`), 0o600); err != nil {
		s.Fatal(err)
	}
	s.env = append(s.env, "OCICRYPT_KEYPROVIDER_CONFIG="+file)
}

// copy runs skopeo copy, in the folder of the test.
func (s *skopeo) copy(args ...string) error {
	s.Helper()
	cmd := s.root.Command(s.Context(), "skopeo", append([]string{"copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"}, args...)...)
	cmd.Dir, cmd.Env = s.dir, s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// ampoule runs a verb of ours.
func (s *skopeo) ampoule(args ...string) error {
	s.Helper()
	var out, text bytes.Buffer
	if code := dispatch(s.Context(), args, stdio{strings.NewReader(""), &out, &text}); code != 0 {
		return fmt.Errorf("exit code %d: %s", code, &text)
	}
	return nil
}

func (s *skopeo) at(name string) string { return "docker://" + s.registry + "/" + name + ":v1" }

// encrypted fails the test unless what is at the registry is encrypted, and neither in clear.
func (s *skopeo) encrypted(name string) {
	s.Helper()
	i, err := image.Resolve(s.Context(), s.at(name), image.Options{PlainHTTP: true})
	if err != nil {
		s.Fatal(err)
	}
	if err := i.RequireEncrypted(); err != nil {
		s.Fatal(err)
	}
}

// pulled fails the test unless ampoule pull opens the image at the registry, to what the clear one unpacks to.
func (s *skopeo) pulled(name string, flags ...string) {
	s.Helper()
	if _, err := os.Stat(s.path("clear-root")); err != nil {
		if _, err := image.Push(s.Context(), s.plain, s.at("clear"), image.Options{PlainHTTP: true}); err != nil {
			s.Fatal(err)
		}
		if err := s.ampoule("pull", "--http", s.at("clear"), s.path("clear-root")); err != nil {
			s.Fatal(err)
		}
	}
	to := s.path("root-" + name)
	if err := s.ampoule(append(append([]string{"pull", "--http", "--encrypted"}, flags...), s.at(name), to)...); err != nil {
		s.Fatal(err)
	}
	want, got := listing(s.T, s.path("clear-root")), listing(s.T, to)
	if want != got {
		s.Errorf("unpacks to:\n%swant:\n%s", got, want)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %s", fi.Mode(), rel)
		if fi.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s %x", fi.ModTime().UTC().Format(time.RFC3339), content)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// opened fails the test unless skopeo decrypts the image at the registry to the very layers that it had in clear.
func (s *skopeo) opened(name string, flags ...string) {
	s.Helper()
	to := "opened-" + name
	if err := s.copy(append(flags, s.at(name), "oci:"+to)...); err != nil {
		s.Fatal(err)
	}
	got, err := image.Load(s.Context(), s.path(to), image.Options{})
	if err != nil {
		s.Fatal(err)
	}
	a, err := s.plain.Manifest()
	if err != nil {
		s.Fatal(err)
	}
	b, err := got.Manifest()
	if err != nil {
		s.Fatal(err)
	}
	if a.Config.Digest != b.Config.Digest || len(a.Layers) != len(b.Layers) {
		s.Fatalf("skopeo made %+v of %+v", b, a)
	}
	for n := range a.Layers {
		if a.Layers[n].Digest != b.Layers[n].Digest {
			s.Errorf("layer %d is %s, was %s", n, b.Layers[n].Digest, a.Layers[n].Digest)
		}
	}
}

// keyPair writes NAME.pem, NAME.pub.pem and NAME.crt.
func (s *skopeo) keyPair(name string, k crypto.Signer) {
	s.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		s.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		s.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "guest"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		s.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{name + ".pem": {Type: "PRIVATE KEY", Bytes: private}, name + ".pub.pem": {Type: "PUBLIC KEY", Bytes: public}, name + ".crt": {Type: "CERTIFICATE", Bytes: cert}} {
		if err := os.WriteFile(s.path(file), pem.EncodeToMemory(b), 0o600); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *skopeo) keyPairs() {
	s.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.Fatal(err)
	}
	s.keyPair("ec", ec)
	s.keyPair("rsa", rsaKey)
}

// TestSkopeoWithKeyProvider: the commands of CoCo's and Cocos' documentation, by the skopeo of Debian 13 and this key provider.
func TestSkopeoWithKeyProvider(t *testing.T) {
	s := newSkopeo(t, "trixie")
	keys := s.path("keys")
	s.provide(&keyprovider.Provider{Dir: keys})
	if err := os.WriteFile(s.path("key1"), image.NewKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, parameter := range map[string]string{
		"documented": "keypath=" + s.path("key1") + "::keyid=kbs:///default/key/algo-key::algorithm=A256GCM",
		"short":      "keypath=" + s.path("key1") + "::keyid=kbs:///default/key/algo-key",
		"made":       "keyid=kbs:///default/key/made::algorithm=A256GCM",
		"unnamed":    "",
		"slash":      "keyid=/default/key/made",
	} {
		if err := s.copy("--encryption-key", "provider:attestation-agent:"+parameter, "oci:layout", s.at(name)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.encrypted(name)
		s.pulled(name, "--keys", keys)
		s.opened(name, "--decryption-key", "provider:attestation-agent:cc_kbc::null")
	}
	// Ours, for skopeo: by each way to write it.
	for name, dst := range map[string]string{"ours": s.at("ours"), "archive": s.path("sealed.tar"), "folder": s.path("sealed")} {
		if err := s.ampoule("encrypt", "--http", "--keys", keys, "--key", "default/key/ours", "--key", "default/key/theirs", s.path("layout"), dst); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		src := map[string]string{"archive": "oci-archive:sealed.tar", "folder": "oci:sealed"}[name]
		if src != "" {
			if err := s.copy(src, s.at(name)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		s.pulled(name, "--keys", keys)
		s.opened(name, "--decryption-key", "provider:attestation-agent:cc_kbc::null")
	}
	// What skopeo saves, for ours.
	for _, saved := range []string{"oci-archive:saved-oci.tar", "docker-archive:saved-docker.tar"} {
		_, file, _ := strings.Cut(saved, ":")
		if err := s.copy("oci:layout", saved+":a/b:c"); err != nil {
			t.Fatal(err)
		}
		if err := s.ampoule("encrypt", "--http", "--keys", keys, "--key", "default/key/ours", s.path(file), s.at(strings.TrimSuffix(file, ".tar"))); err != nil {
			t.Fatalf("%s: %v", saved, err)
		}
		s.pulled(strings.TrimSuffix(file, ".tar"), "--keys", keys)
	}
	if err := s.copy("--encryption-key", "provider:attestation-agent:sample=true", "oci:layout", s.at("sample")); err == nil || !strings.Contains(err.Error(), "published sample key") {
		t.Errorf("with the sample key: %v", err)
	}
	if err := os.Remove(filepath.Join(keys, "default/key/algo-key")); err != nil {
		t.Fatal(err)
	}
	if err := s.copy("--decryption-key", "provider:attestation-agent:cc_kbc::null", s.at("documented"), "oci:never"); err == nil {
		t.Error("opened without its key")
	}
}

// TestSkopeoWithCommand: the key provider run by skopeo, once for each layer.
func TestSkopeoWithCommand(t *testing.T) {
	s := newSkopeo(t, "trixie")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, s.path("ampoule")); err != nil { // under this name the test is the command
		t.Fatal(err)
	}
	keys := s.path("keys")
	s.configure(fmt.Sprintf(`{"cmd": {"path": %q, "args": ["keyprovider", "--keys", %q, "--stdio"]}}`, s.path("ampoule"), keys))
	if err := s.copy("--encryption-key", "provider:attestation-agent:keyid=kbs:///default/key/k", "oci:layout", s.at("command")); err != nil {
		t.Fatal(err)
	}
	s.encrypted("command")
	s.pulled("command", "--keys", keys)
	s.opened("command", "--decryption-key", "provider:attestation-agent:cc_kbc::null")
}

// TestSkopeoWithKeyPairs: JWE and PKCS #7 both ways, by the skopeo of two suites.
func TestSkopeoWithKeyPairs(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			s := newSkopeo(t, suite)
			s.keyPairs()
			for _, c := range []struct {
				name, theirs, key string
				ours              []string
				decrypt           []string
			}{
				{"jwe-ec", "jwe:ec.pub.pem", "ec.pem", []string{"--jwe", s.path("ec.pub.pem")}, []string{"--decryption-key", "ec.pem"}},
				{"jwe-rsa", "jwe:rsa.pub.pem", "rsa.pem", []string{"--jwe", s.path("rsa.pub.pem")}, []string{"--decryption-key", "rsa.pem"}},
				{"jwe-both", "jwe:rsa.pub.pem", "rsa.pem", []string{"--jwe", s.path("ec.pub.pem"), "--jwe", s.path("rsa.pub.pem")}, []string{"--decryption-key", "rsa.pem"}},
				{"pkcs7", "pkcs7:rsa.crt", "rsa.pem", []string{"--pkcs7", s.path("rsa.crt")}, []string{"--decryption-key", "rsa.pem", "--decryption-key", "rsa.crt"}},
			} {
				if err := s.copy("--encryption-key", c.theirs, "oci:layout", s.at("theirs-"+c.name)); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				s.encrypted("theirs-" + c.name)
				s.pulled("theirs-"+c.name, "--identity", s.path(c.key))
				if err := s.ampoule(append(append([]string{"encrypt", "--http"}, c.ours...), s.path("layout"), s.at("ours-"+c.name))...); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				s.encrypted("ours-" + c.name)
				s.pulled("ours-"+c.name, "--identity", s.path(c.key))
				s.opened("ours-"+c.name, c.decrypt...)
			}
		})
	}
}
