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
	"strings"

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

// Encrypt is [EncryptFor] whoever gets kek, 32 bytes, which the KBS has at kid (kbs:///repo/type/tag).
func Encrypt(ctx context.Context, src v1.Image, kek []byte, kid string, o EncryptOptions) (v1.Image, error) {
	to, err := ForKey(kek, kid, o)
	if err != nil {
		return nil, err
	}
	return EncryptFor(ctx, src, []Recipient{to}, nil)
}

// EncryptFor makes the encrypted form of src (wire/SPEC.md §4): every layer under a key and nonce of its own, these wrapped
// for each of the recipients, 1 to 16. Docker's types become OCI's; the config stays byte for byte, and so do the diff-IDs.
//
// EncryptFor reads every layer once, for digest and HMAC, and tells progress, unless nil, how many bytes it has read anew.
// The image it returns holds no data: it encrypts src anew, to the same bytes, whenever a layer is read, so src must
// stay readable. Neither memory nor disk holds a layer.
func EncryptFor(ctx context.Context, src v1.Image, to []Recipient, progress func(int64)) (v1.Image, error) {
	if len(to) == 0 || len(to) > maxRecipients {
		return nil, fmt.Errorf("%w: %d recipients, want 1 to %d", ErrKey, len(to), maxRecipients)
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
		s, err := sealLayer(&contextReader{ctx, progress, nil}, l, m.Layers[n], to)
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

// sealLayer learns digest and HMAC of a layer's ciphertext and writes its descriptor.
func sealLayer(in *contextReader, l v1.Layer, plain v1.Descriptor, to []Recipient) (*sealedLayer, error) {
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
	in.r = rc
	if _, err := io.Copy(io.MultiWriter(sum, mac), in); err != nil {
		return nil, err
	}

	priv, err := json.Marshal(privateOptions{s.key.sym[:], plain.Digest.String(), map[string][]byte{"nonce": s.key.nonce[:]}})
	if err != nil {
		return nil, err
	}
	defer clear(priv)
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
	maps.DeleteFunc(s.desc.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, annotationPrefix) })
	s.desc.Annotations[annotationOpts] = base64.StdEncoding.EncodeToString(pub)
	return s, annotate(s.desc.Annotations, to, priv)
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

// contextReader ends with a context and tells how far it is.
type contextReader struct {
	ctx      context.Context
	progress func(int64) // or nil
	r        io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if c.progress != nil {
		c.progress(int64(n))
	}
	return n, err
}
