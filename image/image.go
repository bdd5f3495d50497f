// Package image turns an OCI reference into a verified root file system.
//
// [Resolve] learns what a reference means (manifest, config, which keys it wants),
// [Image.Unpack] fetches, verifies, decrypts and unpacks it: a directory appears only
// when the digest, the HMAC and the diff-ID of every layer hold. [Encrypt] is the
// host's side: it makes the images that Unpack opens. What only the host does is built
// without the tag "guest", and so is no part of PID 1.
//
// The layer cipher and the HMAC come from the standard library and not from
// ocicrypt/blockcipher: the format is one AES-CTR stream and one HMAC, that package
// would bring more modules into PID 1, and it hands out plaintext before its MAC is
// known. The tests hold both implementations against each other, in both directions.
package image

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// Sentinels under [*Error]: what was wrong, for callers that branch on it.
var (
	ErrFormat    = tree.ErrFormat
	ErrDigest    = errors.New("wrong digest")
	ErrTruncated = errors.New("blob cut short")
	ErrMAC       = errors.New("wrong HMAC")
	ErrDiffID    = errors.New("wrong diff-ID")
	ErrKey       = errors.New("no usable key")
	ErrSampleKey = errors.New("wrapped with the published sample key")
	ErrPlain     = errors.New("layer is not encrypted")
	ErrPlatform  = errors.New("wrong platform")
	ErrPlainHTTP = errors.New("plain http is not allowed")
	ErrUnsafe    = tree.ErrUnsafe
	ErrTooBig    = tree.ErrTooBig
)

// Error is a failure that belongs to one image and, if Layer is not negative, to one
// layer of it (counted from 0, lowest first).
type Error struct {
	URI   string
	Layer int
	Err   error
}

func (e *Error) Error() string {
	if e.Layer < 0 {
		return fmt.Sprintf("image %s: %v", e.URI, e.Err)
	}
	return fmt.Sprintf("image %s: layer %d: %v", e.URI, e.Layer, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Options say how to reach a registry.
type Options struct {
	// Transport carries all requests; nil is one of [NewTransport] without authority and proxy.
	Transport http.RoundTripper
	// PlainHTTP permits http:// where the registry does not speak https.
	PlainHTTP bool
	// Platform is os/architecture, "linux/amd64" when empty. It chooses from an index,
	// and a single image for another platform is refused.
	Platform string
	// Login is who we are at the registry and at the token service that it names; nil is anonymous. It is never sent
	// over plain http, and never to where a registry redirects.
	Login *Login
	// Buffers are what [Image.Unpack] works in; nil is some of its own. Images that are pulled at the same time should share them.
	Buffers *Buffers
	// Mirrors are asked in this order, before the registry itself, for whatever has a digest.
	Mirrors []Mirror
	// Log gets what mirrors did wrong; nil is nobody.
	Log *slog.Logger
}

// A Mirror is another place that has the repositories of a registry. It is not trusted: all that it sends is held against a
// digest, and what it does wrong only means that the next is asked.
type Mirror struct {
	At        string            // host[:port][/prefix of its repositories]
	Transport http.RoundTripper // as in Options
	PlainHTTP bool
	Login     *Login // of this mirror; the registry's is not used
}

// A Login is a user name and a password at a registry. It is secret.
type Login struct{ User, Password string }

func (Login) String() string               { return "[secret]" }
func (Login) GoString() string             { return "[secret]" }
func (Login) LogValue() slog.Value         { return slog.StringValue("[secret]") }
func (Login) MarshalJSON() ([]byte, error) { return []byte(`"[secret]"`), nil }

// Config is the part of the image's configuration that a run honours.
type Config struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
	Labels     map[string]string
}

// Layer is one layer as the manifest describes it.
type Layer struct {
	MediaType string
	Digest    string // of the blob as stored: of the ciphertext, if encrypted
	DiffID    string // of the uncompressed plaintext tar; empty in an artifact
	Size      int64  // of the blob, bytes
	Encrypted bool
	// File is not empty where the plaintext is no tar but the content of one file, of an artifact: its clean relative path.
	File string

	comp compression
	enc  *sealing // nil when not encrypted
}

// KeyPaths are the KBS paths ("repo/type/tag") of the keys that each open the layer.
func (l *Layer) KeyPaths() []string {
	if l.enc == nil {
		return nil
	}
	var paths []string
	for _, p := range l.enc.packets {
		paths = append(paths, p.path)
	}
	return paths
}

// Image is a resolved image: metadata only, no layer has been fetched.
type Image struct {
	URI            string // as asked for
	Digest         string // of the document the reference names: a manifest or an index
	ManifestDigest string // of the image manifest; equals Digest unless that is an index
	ConfigDigest   string
	Config         Config
	Layers         []Layer
	Pinned         bool // the reference carried the digest
	PlainHTTP      bool // content came without TLS; Unpack may find that out too

	// Artifact says that there is no config: the layers are files, or archives that only their blob's digest vouches for.
	Artifact bool

	reg *registry
	mem *Buffers
}

// PinnedURI is the reference with its digest, whether or not it was asked for by one.
func (i *Image) PinnedURI() string {
	if i.Pinned {
		return i.URI
	}
	return i.URI + "@" + i.Digest
}

// Size is the sum of all blobs that Unpack will fetch, in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Encrypted reports whether there are layers and every one is encrypted.
func (i *Image) Encrypted() bool { return i.RequireEncrypted() == nil }

// RequireEncrypted returns an error wrapping [ErrPlain] if any layer, or the image as a
// whole for want of layers, is not encrypted. Without it a host could replace an
// encrypted layer by a plain one of its own.
func (i *Image) RequireEncrypted() error {
	if len(i.Layers) == 0 {
		return &Error{i.URI, -1, fmt.Errorf("%w: there are no layers; encrypt an image that has some", ErrPlain)}
	}
	for n, l := range i.Layers {
		if !l.Encrypted {
			return &Error{i.URI, n, fmt.Errorf("%w: its type is %s; encrypt the image with `ampoule encrypt`", ErrPlain, l.MediaType)}
		}
	}
	return nil
}

// KeyIDs are the KBS paths ("repo/type/tag") to ask for, sorted and unique: for each
// encrypted layer the first recipient that a KBS serves. [Image.Unpack] also takes the
// keys of the other recipients ([Layer.KeyPaths]). Layers for key pairs name none.
func (i *Image) KeyIDs() []string {
	var ids []string
	for n := range i.Layers {
		if p := i.Layers[n].KeyPaths(); len(p) > 0 {
			ids = append(ids, p[0])
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// ForKeyPair reports whether a private key might open the layer: it has JWE or PKCS #7 recipients, who have no names.
func (l *Layer) ForKeyPair() bool { return l.enc != nil && len(l.enc.unnamed) > 0 }

// Wants are the KBS paths to ask for so that all layers can be opened, sorted and unique. If granted is empty they are
// those of [Image.KeyIDs]. Else it is the one key that there may be: a recipient of every encrypted layer, or what its JWE
// and PKCS #7 recipients must hope to be for. An error wraps [ErrKey] and names the first layer that remains shut.
func (i *Image) Wants(granted string) ([]string, error) {
	if granted == "" {
		for n := range i.Layers {
			if l := &i.Layers[n]; l.Encrypted && len(l.KeyPaths()) == 0 {
				return nil, &Error{i.URI, n, fmt.Errorf("%w: it is for JWE or PKCS #7 keys, which have no names: say by kbs_resource_path where the private key is", ErrKey)}
			}
		}
		return i.KeyIDs(), nil
	}
	var wants []string
	for n := range i.Layers {
		l := &i.Layers[n]
		if !l.Encrypted {
			continue
		}
		if paths := l.KeyPaths(); !slices.Contains(paths, granted) && !l.ForKeyPair() {
			return nil, &Error{i.URI, n, fmt.Errorf("%w: the image asks for key %q and the manifest grants it %q", ErrKey, paths[0], granted)}
		}
		wants = []string{granted}
	}
	return wants, nil
}

// KeyHosts are the brokers, host[:port], that the image's ids of the keys at paths name, sorted and unique; none if all
// leave it open, as they should. They are the image's word: hold them against the manifest's, and never ask there.
func (i *Image) KeyHosts(paths []string) []string {
	var hosts []string
	for n := range i.Layers {
		if i.Layers[n].enc == nil {
			continue
		}
		for _, p := range i.Layers[n].enc.packets {
			if p.host != "" && slices.Contains(paths, p.path) {
				hosts = append(hosts, p.host)
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// Limits bound what one image may unpack to.
type Limits = tree.Limits

// compression of a layer's plaintext.
type compression int

const (
	raw compression = iota
	gzipped
	zstded
)

const encryptedSuffix = "+encrypted"

// layerTypes are the plain layer types and what Docker's become in OCI's terms.
var layerTypes = map[string]struct {
	oci  string
	comp compression
}{
	ociLayer:                {ociLayer, raw},
	ociLayer + "+gzip":      {ociLayer + "+gzip", gzipped},
	ociLayer + "+zstd":      {ociLayer + "+zstd", zstded},
	ociForeign:              {ociForeign, raw},
	ociForeign + "+gzip":    {ociForeign + "+gzip", gzipped},
	ociForeign + "+zstd":    {ociForeign + "+zstd", zstded},
	dockerLayer:             {ociLayer, raw},
	dockerLayer + ".gzip":   {ociLayer + "+gzip", gzipped},
	dockerLayer + ".zstd":   {ociLayer + "+zstd", zstded},
	dockerForeign + ".gzip": {ociForeign + "+gzip", gzipped},
}

const (
	ociLayer      = "application/vnd.oci.image.layer.v1.tar"
	ociForeign    = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	dockerLayer   = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar"

	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// layerType splits a media type into compression and whether it is encrypted. Encrypted
// layers have OCI types only (wire/SPEC.md §4.1).
func layerType(mediaType string) (comp compression, encrypted bool, err error) {
	plain, encrypted := strings.CutSuffix(mediaType, encryptedSuffix)
	t, known := layerTypes[plain]
	if !known || encrypted && t.oci != plain {
		return 0, false, fmt.Errorf("%w: layer type %q is not a tar of any kind this build reads", ErrFormat, mediaType)
	}
	return t.comp, encrypted, nil
}
