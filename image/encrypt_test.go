package image

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

func TestEncryptKeepsConfigAndTurnsDockerIntoOCI(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "plain", plain{treetest.Tar(t, treetest.File("a", "1")), dockerLayer + ".gzip"}, plain{treetest.Tar(t, treetest.File("b", "2")), ociLayer + "+zstd"})
	src := mustLoad(t, uri)
	kek := NewKey()
	img, err := Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	was, err := src.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	is, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, is) {
		t.Error("the config changed")
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	sm, err := src.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest != sm.Config.Digest || m.Config.MediaType != types.OCIConfigJSON || m.MediaType != types.OCIManifestSchema1 {
		t.Errorf("manifest %+v", m)
	}
	seen := map[string]bool{}
	for n, want := range []string{ociLayer + "+gzip+encrypted", ociLayer + "+zstd+encrypted"} {
		l := m.Layers[n]
		if string(l.MediaType) != want || l.Size != sm.Layers[n].Size || l.Digest == sm.Layers[n].Digest || len(l.Annotations) != 2 {
			t.Errorf("layer %d: %+v, want type %s, the plain size and two annotations", n, l, want)
		}
		pub, err := base64.StdEncoding.DecodeString(l.Annotations[annotationOpts])
		if err != nil || !strings.HasPrefix(string(pub), `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"`) || !strings.HasSuffix(string(pub), `","cipheroptions":{}}`) {
			t.Errorf("layer %d: public options %s, %v", n, pub, err)
		}
		pkt, err := base64.StdEncoding.DecodeString(l.Annotations[annotationKeys])
		if err != nil || !strings.HasPrefix(string(pkt), `{"kid":"kbs:///default/key/k","wrapped_data":"`) || !strings.HasSuffix(string(pkt), `","wrap_type":"A256GCM"}`) {
			t.Errorf("layer %d: packet %s, %v", n, pkt, err)
		}
		enc, err := parseSealing(l.Annotations)
		if err != nil {
			t.Fatal(err)
		}
		k, err := enc.unwrap(Keys{"default/key/k": kek})
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(k.sym[:])] || seen[string(k.nonce[:])] {
			t.Error("two layers share a key or nonce")
		}
		seen[string(k.sym[:])], seen[string(k.nonce[:])] = true, true
	}
	again, err := Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := img.Digest()
	b, _ := again.Digest()
	if a == b {
		t.Error("two encryptions are equal: keys are not random")
	}
	if _, err := Encrypt(t.Context(), img, kek, "kbs:///default/key/k", EncryptOptions{}); !errors.Is(err, ErrFormat) {
		t.Errorf("encrypting twice: error %v, want ErrFormat", err)
	}
}

func TestEncryptedImageSurvivesLayoutAndRealRegistry(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	img, err := Encrypt(t.Context(), mustLoad(t, s.image(t, "plain", twoLayers(t)...)), kek, "kbs:///default/key/k", EncryptOptions{PacketV2: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	if err := Save(img, dir); err != nil {
		t.Fatal(err)
	}
	if err := Save(img, dir); err == nil {
		t.Error("saved over an existing directory")
	}
	loaded, err := Load(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	uri, err := Push(t.Context(), loaded, "docker://"+realRegistry(t)+"/a/b:c", plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.Digest()
	if !strings.HasSuffix(uri, "/a/b:c@"+want.String()) {
		t.Errorf("pushed as %s, want digest %s", uri, want)
	}
	got, err := unpack(t, uri, Keys{"default/key/k": kek}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(treetest.List(t, got)); n != 3 {
		t.Errorf("%d entries, want 3", n)
	}
}

func TestDockerArchiveCanBeEncrypted(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "plain", twoLayers(t)[0])
	tag, err := name.NewTag("r/i:t")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "saved.tar")
	if err := tarball.WriteToFile(archive, tag, mustLoad(t, uri)); err != nil {
		t.Fatal(err)
	}
	src, err := Load(t.Context(), archive, Options{})
	if err != nil {
		t.Fatal(err)
	}
	kek := NewKey()
	img, err := Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Push(t.Context(), img, "docker://"+realRegistry(t)+"/r/i:e", plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	want, err := unpack(t, uri, nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := unpack(t, sealed, Keys{"default/key/k": kek}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(treetest.List(t, want), treetest.List(t, got)); diff != "" {
		t.Errorf("tree (-plain +encrypted):\n%s", diff)
	}
}

func TestMalformedAnnotationsAreRefused(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	const iv12, iv16 = "AAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAA=="
	packet := func(extra, iv, wrap string) string {
		return b64(fmt.Sprintf(`{%s"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":%q,"wrap_type":%q}`, extra, iv, wrap))
	}
	public := func(cipher string, mac int, opts string) string {
		return b64(fmt.Sprintf(`{"cipher":%q,"hmac":%q,"cipheroptions":%s}`, cipher, b64(strings.Repeat("m", mac)), opts))
	}
	goodKeys, goodOpts := packet("", iv12, wrapGCM), public(layerCipher, 32, "{}")
	if _, err := parseSealing(map[string]string{annotationKeys: goodKeys, annotationOpts: goodOpts}); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		keys, opts string
		want       error
	}{
		"no packet":                {"", goodOpts, ErrKey},
		"packet not base64":        {"{}", goodOpts, ErrFormat},
		"packet not JSON":          {b64("x"), goodOpts, ErrFormat},
		"two values in the packet": {b64("{}{}"), goodOpts, ErrFormat},
		"another packet version":   {packet(`"version":"9",`, iv12, wrapGCM), goodOpts, ErrFormat},
		"a key service":            {packet(`"provider":"aliyun",`, iv12, wrapGCM), goodOpts, ErrKey},
		"another wrap type":        {packet("", iv12, "A128KW"), goodOpts, ErrFormat},
		"GCM with a CTR iv":        {packet("", iv16, wrapGCM), goodOpts, ErrFormat},
		"CTR with a GCM iv":        {packet("", iv12, wrapCTR), goodOpts, ErrFormat},
		"a huge packet":            {strings.Repeat("A", maxAnnotation+4), goodOpts, ErrTooBig},
		"many recipients":          {strings.Repeat(",", maxRecipients) + goodKeys, goodOpts, ErrTooBig},
		"no public options":        {goodKeys, "", ErrFormat},
		"options not base64":       {goodKeys, "%", ErrFormat},
		"huge options":             {goodKeys, strings.Repeat("A", maxAnnotation+4), ErrTooBig},
		"another cipher":           {goodKeys, public("AES_256_GCM", 32, "{}"), ErrFormat},
		"no HMAC":                  {goodKeys, public(layerCipher, 0, "{}"), ErrFormat},
		"a short HMAC":             {goodKeys, public(layerCipher, 31, "{}"), ErrFormat},
		"a short nonce":            {goodKeys, public(layerCipher, 32, `{"nonce":"AAAA"}`), ErrFormat},
	} {
		if _, err := parseSealing(map[string]string{annotationKeys: c.keys, annotationOpts: c.opts}); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", what, err, c.want)
		}
	}
}

func TestEncryptRefuses(t *testing.T) {
	s := newShelf(t)
	src := mustLoad(t, s.image(t, "plain", twoLayers(t)...))
	for _, c := range []struct {
		kek  []byte
		kid  string
		want error
	}{
		{NewKey(), "kbs:///default/test-key/1", ErrSampleKey},
		{NewKey(), "default/key", ErrKey},
		{NewKey(), "https://host/a/b/c", ErrKey},
		{NewKey()[:31], "kbs:///a/b/c", ErrKey},
		{fmt.Appendf(nil, "%x", NewKey()), "kbs:///a/b/c", ErrKey},
	} {
		if _, err := Encrypt(t.Context(), src, c.kek, c.kid, EncryptOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s with %d bytes: error %v, want %v", c.kid, len(c.kek), err, c.want)
		}
	}
	// A source that no longer is what its manifest says.
	m, err := src.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	b := s.docs[m.Layers[1].Digest.String()]
	b[len(b)-1] ^= 1
	if _, err := Encrypt(t.Context(), src, NewKey(), "kbs:///a/b/c", EncryptOptions{}); err == nil {
		t.Error("a changed source was encrypted")
	}
}

func TestLoadSaysWhatItCannotRead(t *testing.T) {
	empty := t.TempDir()
	text := filepath.Join(empty, "x.tar")
	if err := os.WriteFile(text, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{empty, text, filepath.Join(empty, "absent"), "oci://x"} {
		if _, err := Load(t.Context(), src, Options{}); err == nil || !strings.Contains(err.Error(), src) {
			t.Errorf("%s: error %v, want one that names it", src, err)
		}
	}
}

func TestKeyPath(t *testing.T) {
	for kid, want := range map[string]string{
		"kbs:///default/key/algo-key":            "default/key/algo-key",
		"kbs://kbs.example:8080/a/b/c":           "a/b/c",
		"/a/b/c":                                 "a/b/c",
		"host/a/b/c":                             "a/b/c",
		"a/b/c":                                  "a/b/c",
		"/default/image-kek/0f-1a.x_y":           "default/image-kek/0f-1a.x_y",
		"kbs://a/b/c":                            "",
		"kbs:///a/b":                             "",
		"kbs:///a/b/c/d":                         "",
		"kbs:///a//c":                            "",
		"kbs:///a/../c":                          "",
		"kbs:///a/b/c?x":                         "",
		"kbs:///a/b/ c":                          "",
		"http://h/a/b/c":                         "",
		"":                                       "",
		"kbs:///a/b/" + strings.Repeat("c", 129): "",
	} {
		got, err := KeyPath(kid)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", kid, got, err, want)
		}
	}
}

func TestSeveralRecipients(t *testing.T) {
	s := newShelf(t)
	a, b := NewKey(), NewKey()
	uri := s.sealed(t, s.image(t, "plain", plain{tar: treetest.Tar(t, treetest.File("x", "1"))}), a, func(m *v1.Manifest, _ [][]byte) {
		an := m.Layers[0].Annotations
		enc, err := parseSealing(an)
		if err != nil {
			t.Fatal(err)
		}
		k, err := enc.unwrap(Keys{"default/key/k": a})
		if err != nil {
			t.Fatal(err)
		}
		p, err := wrapper{kek: b, kid: "/other/key/k"}.wrap(mustJSON(t, privateOptions{k.sym[:], k.digest, map[string][]byte{"nonce": k.nonce[:]}}))
		if err != nil {
			t.Fatal(err)
		}
		kms := base64.StdEncoding.EncodeToString([]byte(`{"version":"0.1.0","kid":"x","wrapped_data":"","provider":"aliyun"}`))
		an[annotationKeys] = kms + "," + an[annotationKeys] + "," + base64.StdEncoding.EncodeToString(p)
	})
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"default/key/k", "other/key/k"}, i.Layers[0].KeyPaths()); diff != "" {
		t.Errorf("key paths (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"default/key/k"}, i.KeyIDs()); diff != "" {
		t.Errorf("key ids (-want +got):\n%s", diff)
	}
	for _, keys := range []Keys{{"default/key/k": a}, {"other/key/k": b}, {"default/key/k": b, "other/key/k": b}} {
		if _, err := unpack(t, uri, keys, Limits{}); err != nil {
			t.Error(err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	keys := Keys{"a/b/c": secret}
	k := &layerKey{sym: [32]byte(secret)}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "keys", keys, "key", k)
	j := mustJSON(t, keys)
	if _, err := json.Marshal(struct{ K any }{keys}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(keys), fmt.Sprintf("%v %+v %#v %s", keys, keys, keys, keys), fmt.Sprintf("%v %+v %#v", k, k, k), log.String(), string(j)} {
		if strings.Contains(text, "0123") || strings.Contains(text, "48 49") || strings.Contains(text, "0x30") {
			t.Errorf("prints %s", text)
		}
	}
	keys.Zero()
	if len(keys) != 0 || !bytes.Equal(secret, make([]byte, 32)) {
		t.Error("Zero left key bytes")
	}
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte(`{"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`), `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA","cipheroptions":{}}`)
	f.Add([]byte(`{"version":"0.1.0","kid":"/a/b/c","provider":"kbs","wrapped_data":"AA==","iv":"AAAAAAAAAAAAAAAAAAAAAA==","wrap_type":"A256CTR"}`), `{}`)
	kek := make([]byte, keySize)
	f.Fuzz(func(t *testing.T, pkt []byte, pub string) {
		s, err := parseSealing(map[string]string{
			annotationKeys: base64.StdEncoding.EncodeToString(pkt),
			annotationOpts: base64.StdEncoding.EncodeToString([]byte(pub)),
		})
		if err != nil {
			return
		}
		for _, p := range s.packets {
			if again, err := KeyPath(p.path); err != nil || again != p.path || p.path == samplePath {
				t.Errorf("path %q: %q, %v", p.path, again, err)
			}
			if k, err := s.unwrap(Keys{p.path: kek}); err == nil && !isDigest(k.digest) {
				t.Errorf("digest %q", k.digest)
			}
		}
	})
}

func TestKeyHosts(t *testing.T) {
	packet := func(kid string) string {
		b := fmt.Appendf(nil, `{"kid":%q,"wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`, kid)
		return base64.StdEncoding.EncodeToString(b)
	}
	mac := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("m", macSize)))
	opts := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"cipher":%q,"hmac":%q,"cipheroptions":{}}`, layerCipher, mac))
	var img Image
	for _, kids := range [][]string{{"kbs:///a/b/c"}, {"kbs://b.example:1/a/b/c", "/a/b/d"}, {"kbs://a.example/a/b/c", "kbs://b.example:1/x/y/z"}} {
		var packets []string
		for _, k := range kids {
			packets = append(packets, packet(k))
		}
		enc, err := parseSealing(map[string]string{annotationKeys: strings.Join(packets, ","), annotationOpts: opts})
		if err != nil {
			t.Fatal(err)
		}
		img.Layers = append(img.Layers, Layer{enc: enc})
	}
	img.Layers = append(img.Layers, Layer{}) // a plain one
	for want, paths := range map[string][]string{
		"a.example b.example:1": {"a/b/c", "x/y/z"},
		"b.example:1":           {"x/y/z", "a/b/d"},
		"":                      {"a/b/d", "d/e/f"},
	} {
		if got := strings.Join(img.KeyHosts(paths), " "); got != want {
			t.Errorf("of %q: %q, want %q", paths, got, want)
		}
	}
}
