package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// A signing is a flow whose algorithm must be signed, and what signs it.
type signing struct {
	*flow
	key    *ecdsa.PrivateKey
	repo   string // host:port/algorithm
	digest string
	shelf  map[string][]byte // of the lookaside, by path
	aside  string            // its URL
}

func newSigning(t *testing.T) *signing {
	t.Helper()
	s := &signing{flow: newFlow(t), shelf: map[string][]byte{}}
	s.key = s.newKey()
	_, rest, _ := strings.Cut(string(s.raw), "docker://")
	ref, _, _ := strings.Cut(rest, `"`)
	s.repo, s.digest, _ = strings.Cut(ref, "@")
	if !strings.HasSuffix(s.repo, "/algorithm") {
		t.Fatalf("the first image is %s", ref)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.aside = srv.URL + "/sigs"
	return s
}

// ServeHTTP is the lookaside.
func (s *signing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, ok := s.shelf[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(b)
}

func (s *signing) newKey() *ecdsa.PrivateKey {
	s.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	return k
}

func (s *signing) pem() string {
	s.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *signing) remote(ref string) name.Reference {
	s.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// cosign signs reference and digest with key, and keeps that as the signature of the digest at.
func (s *signing) cosign(key *ecdsa.PrivateKey, reference, digest, at string) {
	s.Helper()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, reference, digest)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		s.Fatal(err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		s.Fatal(err)
	}
	if err := remote.Write(s.remote(s.repo+":"+strings.Replace(at, ":", "-", 1)+".sig"), img, remote.WithContext(s.Context())); err != nil {
		s.Fatal(err)
	}
}

// asks puts a policy into the manifest by which the algorithm must be signed; more stands beside it.
func (s *signing) asks(more string, requirements ...map[string]any) {
	s.Helper()
	s.edit(`"results": {`, `"images": {"policy": `+s.policy(requirements...)+more+`}, "results": {`)
}

func (s *signing) policy(requirements ...map[string]any) string {
	s.Helper()
	host, _, _ := strings.Cut(s.repo, "/")
	b, err := json.Marshal(map[string]any{"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": map[string]any{
		s.repo: requirements, host: []any{map[string]string{"type": "insecureAcceptAnything"}}}}})
	if err != nil {
		s.Fatal(err)
	}
	return string(b)
}

func (s *signing) mine() map[string]any {
	return map[string]any{"type": "sigstoreSigned", "keyData": s.pem()}
}

// gpg signs simply, and keeps it in the lookaside as signature n of the digest at. It returns the keyring.
func (s *signing) gpg(reference, digest, at string, n int) string {
	s.Helper()
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}
	e, err := openpgp.NewEntity("test", "", "", config)
	if err != nil {
		s.Fatal(err)
	}
	var ring, message bytes.Buffer
	if err := e.Serialize(&ring); err != nil {
		s.Fatal(err)
	}
	w, err := openpgp.Sign(&message, e, nil, config)
	if err != nil {
		s.Fatal(err)
	}
	fmt.Fprintf(w, `{"critical":{"type":"atomic container signature","image":{"docker-manifest-digest":%q},"identity":{"docker-reference":%q}},"optional":{}}`, digest, reference)
	if err := w.Close(); err != nil {
		s.Fatal(err)
	}
	s.shelf[fmt.Sprintf("/sigs/algorithm@%s/signature-%d", strings.Replace(at, ":", "=", 1), n)] = message.Bytes()
	return ring.String()
}

func simply(ring string) map[string]any {
	return map[string]any{"type": "signedBy", "keyType": "GPGKeys", "keyData": base64.StdEncoding.EncodeToString([]byte(ring))}
}

func (s *signing) besides() string { return fmt.Sprintf(`, "lookaside": {%q: %q}`, s.repo, s.aside) }

// TestSignedImages: what is signed as the policy asks is run.
func TestSignedImages(t *testing.T) {
	for name, set := range map[string]func(*signing){
		"cosign, policy and key in the manifest": func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			s.asks("", s.mine())
		},
		"cosign, the key at the broker": func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			s.keep("default/cosign/key", s.pem())
			s.asks("", map[string]any{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"})
		},
		"cosign, policy and key at the broker": func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			s.keep("default/cosign/key", s.pem())
			s.keep("default/security-policy/test", s.policy(map[string]any{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"}))
			s.edit(`"results": {`, `"images": {"policy": "default/security-policy/test"}, "results": {`)
		},
		"cosign, of the index": func(s *signing) {
			index := s.index()
			s.cosign(s.key, s.repo, index, index)
			s.asks("", s.mine())
		},
		"cosign, of the manifest in an index": func(s *signing) {
			manifest := s.digest
			s.index()
			s.cosign(s.key, s.repo, manifest, manifest)
			s.asks("", s.mine())
		},
		"simple signing": func(s *signing) {
			s.asks(s.besides(), simply(s.gpg(s.repo+":v1", s.digest, s.digest, 1)))
		},
		"simple signing, the second of two": func(s *signing) {
			s.gpg(s.repo+":v1", s.digest, s.digest, 1)
			s.asks(s.besides(), simply(s.gpg(s.repo+":v1", s.digest, s.digest, 2)))
		},
		"both": func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			s.asks(s.besides(), s.mine(), simply(s.gpg(s.repo+":v1", s.digest, s.digest, 1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigning(t)
			set(s)
			s.boot()
			s.ends("", result.OK, true)
			if log := s.log(); !strings.Contains(log, "signatures hold") || !strings.Contains(log, "image policy") {
				t.Errorf("the sealed log does not say so:\n%s", log)
			}
		})
	}
}

// index puts the algorithm's image into an index, and that into the manifest.
func (s *signing) index() (digest string) {
	s.Helper()
	img, err := remote.Image(s.remote(s.repo + "@" + s.digest))
	if err != nil {
		s.Fatal(err)
	}
	i := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	d, err := i.Digest()
	if err != nil {
		s.Fatal(err)
	}
	if err := remote.WriteIndex(s.remote(s.repo+"@"+d.String()), i); err != nil {
		s.Fatal(err)
	}
	s.edit(s.digest, d.String())
	return d.String()
}

// TestUnsignedImages: each is refused in resolve, before a key is asked for or a layer pulled, and the owner reads why.
func TestUnsignedImages(t *testing.T) {
	other := "sha256:" + strings.Repeat("5", 64)
	for name, c := range map[string]struct {
		set    func(*signing)
		reason result.Reason
		log    []string
	}{
		"unsigned":         {func(s *signing) { s.asks("", s.mine()) }, result.BadImage, []string{"algorithm: ", "sigstoreSigned with the key in keyData", "no signature was found", "not found"}},
		"unsigned, simply": {func(s *signing) { s.asks(s.besides(), simply(s.gpg(s.repo+":v1", other, other, 1))) }, result.BadImage, []string{"no signature was found"}},
		"signed with another key": {func(s *signing) {
			s.cosign(s.newKey(), s.repo, s.digest, s.digest)
			s.asks("", s.mine())
		}, result.BadImage, []string{"is not good under this key"}},
		"signed with another key, simply": {func(s *signing) {
			s.gpg(s.repo+":v1", s.digest, s.digest, 1)
			s.asks(s.besides(), simply(s.gpg(s.repo+":v1", other, other, 1)))
		}, result.BadImage, []string{"which is none of these"}},
		"the signature of another image": {func(s *signing) {
			s.cosign(s.key, s.repo, other, s.digest)
			s.asks("", s.mine())
		}, result.BadImage, []string{"is good, and for", other}},
		"the signature of another image, simply": {func(s *signing) {
			s.asks(s.besides(), simply(s.gpg(s.repo+":v1", other, s.digest, 1)))
		}, result.BadImage, []string{"is good, and for", other}},
		"the signature of another repository": {func(s *signing) {
			s.cosign(s.key, s.repo+"s", s.digest, s.digest)
			s.asks("", s.mine())
		}, result.BadImage, []string{"made for", "signedIdentity"}},
		"one of two keys": {func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			mine := s.mine()
			s.key = s.newKey()
			s.asks("", mine, s.mine())
		}, result.BadImage, []string{"[1] asks for sigstoreSigned"}},
		"no place for simple signatures": {func(s *signing) {
			s.asks("", simply(s.gpg(s.repo+":v1", s.digest, s.digest, 1)))
		}, result.BadImage, []string{"no lookaside is named"}},
		"a lookaside of another registry": {func(s *signing) {
			s.asks(`, "lookaside": {"other.example": "`+s.aside+`"}`, simply(s.gpg(s.repo+":v1", s.digest, s.digest, 1)))
		}, result.BadImage, []string{"no lookaside is named"}},
		"a key that is not released": {func(s *signing) {
			s.cosign(s.key, s.repo, s.digest, s.digest)
			s.asks("", map[string]any{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"})
		}, result.Denied, []string{"PolicyDeny"}},
		"a policy that is none": {func(s *signing) { s.edit(`"results": {`, `"images": {"policy": {"default": []}}, "results": {`) }, result.BadImage, []string{"image policy of the manifest"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigning(t)
			c.set(s)
			s.boot()
			s.ends("resolve", c.reason, false)
			for _, text := range c.log {
				if log := s.log(); !strings.Contains(log, text) {
					t.Errorf("the sealed log lacks %q:\n%s", text, log)
				}
			}
			if strings.Contains(s.console.String(), "sigstoreSigned") {
				t.Error("the console says why")
			}
		})
	}
}

// TestLookasideOfAPrivateAuthority: it is the one that the manifest names for that host.
func TestLookasideOfAPrivateAuthority(t *testing.T) {
	for _, named := range []bool{true, false} {
		s := newSigning(t)
		srv := httptest.NewUnstartedServer(s)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		defer srv.Close()
		s.aside = srv.URL + "/sigs"
		s.asks(s.besides(), simply(s.gpg(s.repo+":v1", s.digest, s.digest, 1)))
		if named {
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
			s.edit(`"results": {`, fmt.Sprintf(`"registries": [{"host": %q, "ca": %q}], "results": {`, strings.TrimPrefix(srv.URL, "https://"), ca))
		}
		s.boot()
		if named {
			s.ends("", result.OK, true)
			continue
		}
		s.ends("resolve", result.BadImage, false)
		if log := s.log(); !strings.Contains(log, "certificate") || !strings.Contains(log, "no signature was found") {
			t.Errorf("the sealed log does not say why:\n%s", log)
		}
	}
}

func TestLookasideScopes(t *testing.T) {
	r := &run{machine: &machine{}, doc: &manifest.Manifest{Lookaside: []manifest.Lookaside{
		{Scope: "r.example", URL: "https://one.example"}, {Scope: "r.example/team", URL: "https://two.example/x"}, {Scope: "r.example:5000", URL: "https://three.example"}, {Scope: "R.example/team/app", URL: "https://four.example"}}}}
	for uri, want := range map[string]string{
		"docker://r.example/x:v1":              "https://one.example",
		"docker://R.EXAMPLE/x@sha256:00":       "https://one.example",
		"docker://r.example/team/x:v1":         "https://two.example/x",
		"docker://r.example/teams/x:v1":        "https://one.example",
		"docker://r.example/team:v1@sha256:00": "https://two.example/x",
		"docker://r.example:5000/team/x":       "https://three.example",
		"docker://r.example:5001/team/x":       "",
		"docker://r.example/team/app:v1":       "https://four.example",
		"docker://s.example/r.example/team/x":  "",
	} {
		if got, _, err := r.lookaside(uri); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", uri, got, err, want)
		}
	}
}
