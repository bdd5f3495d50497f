package image

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/ocicrypt"
	encconfig "github.com/containers/ocicrypt/config"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// ocicrypt speaks to key providers through a command, and reads which one when its
// package is initialised. So the test binary is run again in two parts: as ocicrypt's
// user, and as the key provider that this one calls, which holds the KEK and speaks
// CoCo's packets with code of its own.
const (
	roleEnv = "IMAGE_TEST_ROLE"
	kekEnv  = "IMAGE_TEST_KEK"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "keyprovider":
		err = keyProvider(os.Stdin, os.Stdout)
	case "encrypt":
		err = ocicryptEncrypt(os.Args[1])
	case "decrypt":
		err = ocicryptDecrypt(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// keyProvider answers one request of wire/SPEC.md §4.2.
func keyProvider(in io.Reader, out io.Writer) error {
	var req struct {
		Op   string `json:"op"`
		Wrap struct {
			Opts []byte `json:"optsdata"`
		} `json:"keywrapparams"`
		Unwrap struct {
			Annotation []byte `json:"annotation"`
		} `json:"keyunwrapparams"`
	}
	if err := json.NewDecoder(in).Decode(&req); err != nil {
		return err
	}
	kek, err := os.ReadFile(os.Getenv(kekEnv))
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	type fields = map[string]any
	var answer fields
	if req.Op == "keywrap" {
		iv := make([]byte, 12)
		rand.Read(iv)
		p, err := json.Marshal(fields{"kid": "kbs:///default/key/k", "wrapped_data": gcm.Seal(nil, iv, req.Wrap.Opts, nil), "iv": iv, "wrap_type": "A256GCM"})
		if err != nil {
			return err
		}
		answer = fields{"keywrapresults": fields{"annotation": p}}
	} else {
		var p struct {
			Data []byte `json:"wrapped_data"`
			IV   []byte `json:"iv"`
		}
		if err := json.Unmarshal(req.Unwrap.Annotation, &p); err != nil {
			return err
		}
		opts, err := gcm.Open(nil, p.IV, p.Data, nil)
		if err != nil {
			return err
		}
		answer = fields{"keyunwrapresults": fields{"optsdata": opts}}
	}
	return json.NewEncoder(out).Encode(answer)
}

func ocicryptEncrypt(dir string) error {
	plain, err := os.ReadFile(filepath.Join(dir, "plain"))
	if err != nil {
		return err
	}
	ec := &encconfig.EncryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte("keyid=kbs:///default/key/k")}}}
	r, finish, err := ocicrypt.EncryptLayer(ec, bytes.NewReader(plain), ocispec.Descriptor{Digest: godigest.FromBytes(plain), Size: int64(len(plain))})
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	annotations, err := finish()
	if err != nil {
		return err
	}
	a, err := json.Marshal(annotations)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "annotations"), a, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "sealed"), b, 0o600)
}

func ocicryptDecrypt(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "sealed"))
	if err != nil {
		return err
	}
	a, err := os.ReadFile(filepath.Join(dir, "annotations"))
	if err != nil {
		return err
	}
	d := ocispec.Descriptor{Digest: godigest.FromBytes(b), Size: int64(len(b))}
	if err := json.Unmarshal(a, &d.Annotations); err != nil {
		return err
	}
	dc := &encconfig.DecryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte("cc_kbc::null")}}}
	r, _, err := ocicrypt.DecryptLayer(dc, bytes.NewReader(b), d, false)
	if err != nil {
		return err
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "plain"), plain, 0o600)
}

// runOcicrypt runs this binary as ocicrypt's user in dir.
func runOcicrypt(t *testing.T, role, dir string, kek []byte) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	// The provider inherits the role of its caller, so a wrapper names its own.
	script := filepath.Join(dir, "provider")
	if err := os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\n%s=keyprovider exec '%s'\n", roleEnv, self), 0o700); err != nil {
		t.Fatal(err)
	}
	conf, err := json.Marshal(map[string]any{"key-providers": map[string]any{"attestation-agent": map[string]any{"cmd": map[string]any{"path": script}}}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, kekEnv+"="+write("kek", kek), "OCICRYPT_KEYPROVIDER_CONFIG="+write("conf", conf))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ocicrypt %s: %v\n%s", role, err, out)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOcicryptDecryptsWhatEncryptMakes(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "plain", twoLayers(t)...)
	src := mustLoad(t, uri)
	plainLayers, err := src.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, v2 := range []bool{false, true} {
		kek := NewKey()
		img, err := Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{PacketV2: v2})
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for n, l := range layers {
			dir := t.TempDir()
			for name, b := range map[string][]byte{"sealed": readAllOf(t, l), "annotations": mustJSON(t, m.Layers[n].Annotations)} {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			runOcicrypt(t, "decrypt", dir, kek)
			if !bytes.Equal(read(t, dir, "plain"), readAllOf(t, plainLayers[n])) {
				t.Errorf("packet v2 %v, layer %d: ocicrypt decrypts it to something else", v2, n)
			}
		}
	}
}

func TestUnpackOpensWhatOcicryptMakes(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "plain", twoLayers(t)...)
	want, err := unpack(t, uri, nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	kek := NewKey()
	made := s.store(t, "theirs", mustLoad(t, uri), func(m *v1.Manifest, blobs [][]byte) {
		for n := range blobs {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "plain"), blobs[n], 0o600); err != nil {
				t.Fatal(err)
			}
			runOcicrypt(t, "encrypt", dir, kek)
			blobs[n] = read(t, dir, "sealed")
			if err := json.Unmarshal(read(t, dir, "annotations"), &m.Layers[n].Annotations); err != nil {
				t.Fatal(err)
			}
			m.Layers[n].MediaType += types.MediaType(encryptedSuffix)
			restamp(m, n, blobs[n])
		}
	})
	got, err := unpack(t, made, Keys{"default/key/k": kek}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if w, g := fmt.Sprint(treetest.List(t, want)), fmt.Sprint(treetest.List(t, got)); w != g {
		t.Errorf("tree differs from the plain one:\n%.300s\n%.300s", w, g)
	}
}

func readAllOf(t testing.TB, l v1.Layer) []byte {
	t.Helper()
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOcicryptIsLinkedByTestsOnly(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	for _, bad := range []string{"containers/ocicrypt", "net/http/httptest", "protobuf", "grpc", "text/template", "encoding/gob", "\ntesting\n"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("package image depends on %s", strings.TrimSpace(bad))
		}
	}
}
