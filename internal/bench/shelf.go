package bench

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ampoule-vm/ampoule/image"
)

// Compression is how a layer is stored: the end of its media type.
type Compression string

const (
	Raw  Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// A Layer says what to make: an archive of Files files with Bytes bytes in all, of about the same size each unless
// Uneven, when they have from nothing to twice as much.
type Layer struct {
	Content     Content
	Compression Compression
	Files       int
	Bytes       int64
	Uneven      bool
}

// keyID is the key's path at a broker, and where the shelf's Keys has it.
const keyID = "default/key/bench"

// A Shelf is a registry on loopback, plain http, for images that it makes. Blobs are files in a folder, so they lie in
// the page cache and the process that serves them stays small.
type Shelf struct {
	Host    string // HOST:PORT
	Keys    string // folder of keys as `ampoule pull --keys` takes it
	PrivPEM string // file with the private key that opens the layers' JWE, as skopeo takes it

	dir    string
	kek    []byte
	pubPEM []byte
	server *http.Server
}

// NewShelf serves from dir, which must exist, until Close.
func NewShelf(dir string) (*Shelf, error) {
	s := &Shelf{dir: dir, Keys: filepath.Join(dir, "keys"), PrivPEM: filepath.Join(dir, "priv.pem"), kek: image.NewKey()}
	priv, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		return nil, err
	}
	s.pubPEM = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
	files := map[string][]byte{
		s.PrivPEM:                      pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(priv)}),
		filepath.Join(s.Keys, keyID):   s.kek,
		filepath.Join(dir, "v2/empty"): nil,
	}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.Host = l.Addr().String()
	s.server = &http.Server{Handler: s}
	go s.server.Serve(l) // ends with ErrServerClosed in Close
	return s, nil
}

// Close ends serving. The folder stays.
func (s *Shelf) Close() error { return s.server.Close() }

// path is where an image's manifest, by tag or digest, or a blob lies.
func (s *Shelf) path(name string) string { return filepath.Join(s.dir, "v2", filepath.Base(name)) }

// ServeHTTP answers for any repository: they all have the same content.
func (s *Shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v2/":
		return
	case strings.Contains(r.URL.Path, "/manifests/"):
		b, err := os.ReadFile(s.path(r.URL.Path))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		if r.Method != http.MethodHead {
			w.Write(b) // the client's going away is its own matter
		}
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeFile(w, r, s.path(r.URL.Path))
	}
}

// An Image is one that the shelf serves.
type Image struct {
	Tag      string
	Bytes    int64 // of the layers' archives, uncompressed
	Layers   []v1.Descriptor
	manifest digest.Digest
	config   digest.Digest
	layers   []Layer   // as asked for
	keys     []blobKey // of the layers
	diffIDs  []digest.Digest
}

// A blobKey opens one layer.
type blobKey struct{ sym, nonce []byte }

// Make makes an image of layers and serves it by tag. Encrypted, every layer has two recipients: the key in Keys, in
// CoCo's packet, and the RSA key in PrivPEM, in a JWE. The encryption is ocicrypt's.
func (s *Shelf) Make(ctx context.Context, tag string, encrypted bool, layers ...Layer) (*Image, error) {
	img := &Image{Tag: tag}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	for n, l := range layers {
		desc, key, diffID, size, err := s.layer(ctx, uint64(n), l, encrypted)
		if err != nil {
			return nil, fmt.Errorf("image %s: layer %d: %w", tag, n, err)
		}
		img.Layers, img.layers, img.keys = append(img.Layers, desc), append(img.layers, l), append(img.keys, key)
		img.diffIDs = append(img.diffIDs, diffID)
		img.Bytes += size
	}
	config.RootFS.DiffIDs = img.diffIDs
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	img.config = digest.FromBytes(b)
	m, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: img.Layers,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: img.config, Size: int64(len(b))},
	})
	if err != nil {
		return nil, err
	}
	img.manifest = digest.FromBytes(m)
	return img, errors.Join(os.WriteFile(s.path(img.config.String()), b, 0o600),
		os.WriteFile(s.path(img.manifest.String()), m, 0o600), os.WriteFile(s.path(tag), m, 0o600))
}

// Remove takes an image off the shelf.
func (s *Shelf) Remove(img *Image) error {
	errs := []error{os.Remove(s.path(img.Tag)), os.Remove(s.path(img.config.String())), os.Remove(s.path(img.manifest.String()))}
	for _, l := range img.Layers {
		errs = append(errs, os.Remove(s.path(l.Digest.String())))
	}
	return errors.Join(errs...)
}

// layer makes a blob without holding it. diffID and size are of its archive.
func (s *Shelf) layer(ctx context.Context, seed uint64, l Layer, encrypted bool) (desc v1.Descriptor, key blobKey, diffID digest.Digest, size int64, err error) {
	file, err := os.CreateTemp(filepath.Join(s.dir, "v2"), ".layer-*")
	if err != nil {
		return desc, key, "", 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()

	plain, diff, archived := sha256.New(), sha256.New(), &counter{}
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(l.write(ctx, seed, io.MultiWriter(plain, pw), io.MultiWriter(diff, archived)))
	}()
	defer pr.Close()
	var in io.Reader = pr
	var finish blockcipher.Finalizer
	if encrypted {
		h, err := blockcipher.NewLayerBlockCipherHandler()
		if err != nil {
			return desc, key, "", 0, err
		}
		if in, finish, err = h.Encrypt(pr, blockcipher.AES256CTR); err != nil {
			return desc, key, "", 0, err
		}
	}
	sum := sha256.New()
	if desc.Size, err = io.Copy(io.MultiWriter(file, sum), in); err != nil {
		return desc, key, "", 0, err
	}
	desc.MediaType = v1.MediaTypeImageLayer
	if l.Compression != Raw {
		desc.MediaType += "+" + string(l.Compression)
	}
	desc.Digest = digest.NewDigest(digest.SHA256, sum)
	if encrypted {
		desc.MediaType += "+encrypted"
		if desc.Annotations, key, err = s.annotations(finish, digest.NewDigest(digest.SHA256, plain)); err != nil {
			return desc, key, "", 0, err
		}
	}
	err = os.Rename(file.Name(), s.path(desc.Digest.String()))
	return desc, key, digest.NewDigest(digest.SHA256, diff), archived.n, err
}

// annotations are an encrypted layer's: its key, which it also returns, for both recipients.
func (s *Shelf) annotations(finish blockcipher.Finalizer, plain digest.Digest) (_ map[string]string, key blobKey, err error) {
	opts, err := finish()
	if err != nil {
		return nil, key, err
	}
	opts.Private.Digest = plain
	key = blobKey{opts.Private.SymmetricKey, opts.Private.CipherOptions["nonce"]}
	priv, err := json.Marshal(opts.Private)
	if err != nil {
		return nil, key, err
	}
	pub, err := json.Marshal(opts.Public)
	if err != nil {
		return nil, key, err
	}
	packet, err := image.WrapKey(priv, s.kek, "kbs:///"+keyID, image.EncryptOptions{})
	if err != nil {
		return nil, key, err
	}
	wrapper := jwe.NewKeyWrapper()
	token, err := wrapper.WrapKeys(&encconfig.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {s.pubPEM}}}, priv)
	if err != nil {
		return nil, key, err
	}
	base64 := base64.StdEncoding.EncodeToString
	return map[string]string{
		"org.opencontainers.image.enc.pubopts":                         base64(pub),
		"org.opencontainers.image.enc.keys.provider.attestation-agent": base64(packet),
		wrapper.GetAnnotationID():                                      base64(token),
	}, key, nil
}

// sizes are the numbers and sizes of the layer's files.
func (l Layer) sizes() iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		left := l.Bytes
		for n := range l.Files {
			size := l.Bytes / int64(l.Files)
			if l.Uneven { // from 0 to 2 of the mean, in 8 steps; the sum of 9 is 9 means
				size = size * int64(n%9) / 4
			}
			if n == l.Files-1 {
				size = left
			}
			left -= size
			if !yield(n, size) {
				return
			}
		}
	}
}

// write writes the blob, as it is before encryption, to w, and the archive to archive besides.
func (l Layer) write(ctx context.Context, seed uint64, w, archive io.Writer) error {
	out := nopCloser(w)
	switch l.Compression {
	case Gzip:
		out = gzip.NewWriter(w)
	case Zstd:
		z, err := zstd.NewWriter(w)
		if err != nil {
			return err
		}
		out = z
	}
	t := tar.NewWriter(io.MultiWriter(out, archive))
	const dirs = 50
	for n := range min(dirs, l.Files) {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("layer%d/d%d/", seed, n), Mode: 0o755}); err != nil {
			return err
		}
	}
	for n, size := range l.sizes() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: fmt.Sprintf("layer%d/d%d/f%d", seed, n%dirs, n), Mode: 0o644, Size: size}); err != nil {
			return err
		}
		if _, err := io.Copy(t, l.Content.reader(seed<<32|uint64(n), size)); err != nil {
			return err
		}
	}
	return cmp.Or(t.Close(), out.Close())
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return len(b), nil }

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

func nopCloser(w io.Writer) io.WriteCloser { return nopWriteCloser{w} }
