//go:build !guest

package image

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// EncryptOptions choose between spellings of the same thing.
type EncryptOptions struct {
	// PacketV2 writes CoCo's second packet format. The first is what the CoCo key
	// provider writes and all readers know.
	PacketV2 bool
}

// NewKey makes a key encryption key: 32 random bytes, to be stored at the KBS as they are.
func NewKey() []byte {
	k := make([]byte, keySize)
	rand.Read(k) // never fails
	return k
}

// Encrypt makes the encrypted form of src (wire/SPEC.md §4): every layer under a key and
// nonce of its own, these wrapped by kek, which the KBS has at kid (kbs:///repo/type/tag).
// Docker's types become OCI's; the config stays byte for byte, and so do the diff-IDs.
//
// Encrypt reads every layer once, for digest and HMAC. The image it returns holds no
// data: it encrypts src anew, to the same bytes, whenever a layer is read, so src must
// stay readable. Neither memory nor disk holds a layer.
func Encrypt(ctx context.Context, src v1.Image, kek []byte, kid string, o EncryptOptions) (v1.Image, error) {
	path, err := KeyPath(kid)
	if err != nil {
		return nil, err
	}
	if path == samplePath {
		return nil, fmt.Errorf("%w: %s names a key that is public; choose another", ErrSampleKey, kid)
	}
	if len(kek) != keySize {
		return nil, fmt.Errorf("%w: the key has %d bytes, want %d%s", ErrKey, len(kek), keySize, textHint(kek))
	}
	m, err := src.Manifest()
	if err != nil {
		return nil, fmt.Errorf("manifest of the source: %w", err)
	}
	config, err := src.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("config of the source: %w", err)
	}
	if got := digestOf(config); got != m.Config.Digest.String() {
		return nil, fmt.Errorf("config of the source: %w: %s, its manifest says %s", ErrDigest, got, m.Config.Digest)
	}
	parsed, err := src.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("config of the source: %w", err)
	}
	layers, err := src.Layers()
	if err != nil {
		return nil, fmt.Errorf("layers of the source: %w", err)
	}
	if len(layers) != len(m.Layers) || len(layers) != len(parsed.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%w: %d layers, %d in the manifest, %d diff-IDs", ErrFormat, len(layers), len(m.Layers), len(parsed.RootFS.DiffIDs))
	}

	sealed := &sealedImage{config: config}
	out := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        m.Config,
		Layers:        make([]v1.Descriptor, 0, len(layers)),
		Annotations:   m.Annotations,
	}
	out.Config.MediaType = types.OCIConfigJSON
	for n, l := range layers {
		s, err := sealLayer(ctx, l, m.Layers[n], wrapper{kek, kid, o.PacketV2})
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", n, err)
		}
		s.diffID = parsed.RootFS.DiffIDs[n]
		sealed.layers = append(sealed.layers, s)
		out.Layers = append(out.Layers, s.desc)
	}
	if sealed.manifest, err = json.Marshal(out); err != nil {
		return nil, err
	}
	if len(sealed.manifest) > maxManifest {
		return nil, fmt.Errorf("%w: the manifest has %d bytes, at most %d can be read back", ErrTooBig, len(sealed.manifest), maxManifest)
	}
	return sealed, nil
}

// wrapper makes key packets.
type wrapper struct {
	kek []byte
	kid string
	v2  bool
}

func (w wrapper) wrap(plain []byte) ([]byte, error) {
	block, err := aes.NewCipher(w.kek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	p := wirePacket{KID: w.kid, WrappedData: gcm.Seal(nil, iv, plain, nil), IV: iv, WrapType: wrapGCM}
	if w.v2 {
		p.Version, p.Provider = "0.1.0", "kbs"
		p.Settings, p.Annotations = json.RawMessage("{}"), json.RawMessage("{}")
	}
	return json.Marshal(p)
}

// WrapKey makes the annotation packet of a layer, for a key provider (wire/SPEC.md §4.2, §4.3): data are the private options of
// the layer, opaque here, kek is 32 bytes, and kid the key's id, kbs:///repo/type/tag.
func WrapKey(data, kek []byte, kid string, o EncryptOptions) ([]byte, error) {
	host, path, err := splitKID(kid)
	if err != nil {
		return nil, err
	}
	if path == samplePath {
		return nil, fmt.Errorf("%w (%s): anybody could read the layer; name a key of your own", ErrSampleKey, kid)
	}
	if len(kek) != keySize {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d%s", ErrKey, path, len(kek), keySize, textHint(kek))
	}
	return wrapper{kek: kek, kid: "kbs://" + host + "/" + path, v2: o.PacketV2}.wrap(data)
}

// UnwrapKey opens a packet of at most 64 KiB with the key that key gives for its path, repo/type/tag, and gives the private
// options of the layer. Nothing is said of them: under A256CTR, which has no tag, another key gives other bytes.
func UnwrapKey(packet []byte, key func(path string) ([]byte, error)) ([]byte, error) {
	if len(packet) > maxAnnotation {
		return nil, fmt.Errorf("%w: key packet of %d bytes, at most %d", ErrTooBig, len(packet), maxAnnotation)
	}
	p, err := parsePacket(packet)
	if err != nil {
		return nil, err
	}
	kek, err := key(p.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, p.path, err)
	}
	defer clear(kek)
	data, err := p.open(kek)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, p.path, err)
	}
	return data, nil
}

// sealLayer learns digest and HMAC of a layer's ciphertext and writes its descriptor.
func sealLayer(ctx context.Context, l v1.Layer, plain v1.Descriptor, w wrapper) (*sealedLayer, error) {
	t, known := layerTypes[string(plain.MediaType)]
	if !known {
		return nil, fmt.Errorf("%w: layer type %q cannot be encrypted (is it already?)", ErrFormat, plain.MediaType)
	}
	s := &sealedLayer{plain: l, want: plain}
	rand.Read(s.key.sym[:])
	rand.Read(s.key.nonce[:])

	sum, mac := sha256.New(), hmac.New(sha256.New, s.key.sym[:])
	rc, err := s.Compressed()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if _, err := io.Copy(io.MultiWriter(sum, mac), &contextReader{ctx, rc}); err != nil {
		return nil, err
	}

	priv, err := json.Marshal(privateOptions{s.key.sym[:], plain.Digest.String(), map[string][]byte{"nonce": s.key.nonce[:]}})
	if err != nil {
		return nil, err
	}
	defer clear(priv)
	pkt, err := w.wrap(priv)
	if err != nil {
		return nil, err
	}
	pub, err := json.Marshal(publicOptions{layerCipher, mac.Sum(nil), map[string][]byte{}})
	if err != nil {
		return nil, err
	}
	s.desc = v1.Descriptor{
		MediaType:   types.MediaType(t.oci + encryptedSuffix),
		Digest:      v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))},
		Size:        plain.Size,
		Annotations: maps.Clone(plain.Annotations),
	}
	if s.desc.Annotations == nil {
		s.desc.Annotations = map[string]string{}
	}
	s.desc.Annotations[annotationKeys] = base64.StdEncoding.EncodeToString(pkt)
	s.desc.Annotations[annotationOpts] = base64.StdEncoding.EncodeToString(pub)
	return s, nil
}

// sealedLayer is a v1.Layer that encrypts while it is read.
type sealedLayer struct {
	plain  v1.Layer
	want   v1.Descriptor // of the plain blob
	desc   v1.Descriptor
	diffID v1.Hash
	key    layerKey
}

func (s *sealedLayer) Digest() (v1.Hash, error)            { return s.desc.Digest, nil }
func (s *sealedLayer) DiffID() (v1.Hash, error)            { return s.diffID, nil }
func (s *sealedLayer) Size() (int64, error)                { return s.desc.Size, nil }
func (s *sealedLayer) MediaType() (types.MediaType, error) { return s.desc.MediaType, nil }
func (s *sealedLayer) Descriptor() (*v1.Descriptor, error) { return s.desc.DeepCopy(), nil }
func (s *sealedLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("an encrypted layer has no uncompressed form")
}

// Compressed is the ciphertext. Reading it to the end also verifies that the source still
// is what it was.
func (s *sealedLayer) Compressed() (io.ReadCloser, error) {
	rc, err := s.plain.Compressed()
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(s.key.sym[:])
	if err != nil {
		rc.Close()
		return nil, err
	}
	checked := &checkedReader{r: rc, want: s.want, sum: sha256.New()}
	return &struct {
		io.Reader
		io.Closer
	}{cipher.StreamReader{S: cipher.NewCTR(block, s.key.nonce[:]), R: checked}, rc}, nil
}

// checkedReader fails at EOF if the bytes were not those of a descriptor.
type checkedReader struct {
	r    io.Reader
	want v1.Descriptor
	sum  hash.Hash
	size int64
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	c.size += int64(n)
	if err == io.EOF {
		if got := formatDigest(c.sum.Sum(nil)); got != c.want.Digest.String() || c.size != c.want.Size {
			return n, fmt.Errorf("%w: the source layer is %s of %d bytes, its manifest says %s of %d",
				ErrDigest, got, c.size, c.want.Digest, c.want.Size)
		}
	}
	return n, err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
