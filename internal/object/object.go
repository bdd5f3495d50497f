// Package object fetches one file from an object store or a web server, and hands it out when it is known to be the right one.
//
// [Resolve] learns how large the object is, [Object.Unpack] fetches it into a spool that nothing can reach, decrypts it there in place,
// holds it against the digests that its owner gave, and lays it out as a directory: the file, or what is in the archive. docs/OBJECTS.md
// has the stores, the two encrypted forms byte by byte, and their vectors.
//
// What is on the other side is a stranger: https unless the image permits http, replies bounded, credentials to the first host alone,
// and no error text has the query of a URL, which may be a signature.
package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// What was wrong, for callers that branch on it.
var (
	ErrFormat    = tree.ErrFormat
	ErrTooBig    = tree.ErrTooBig
	ErrDigest    = errors.New("wrong digest")
	ErrTruncated = errors.New("object cut short")
	ErrChanged   = errors.New("object changed while it was fetched")
	ErrKey       = errors.New("no usable key")
	ErrSealed    = errors.New("does not decrypt")
	ErrPlainHTTP = errors.New("plain http is not allowed")
	ErrRedirect  = errors.New("redirect refused")
)

// Source says where an object is and who asks for it.
type Source struct {
	URI   string       // https://host/path[?query], http://…, s3://bucket/key, gs://bucket/name; keys and names are taken as they are
	Store Store        // of s3 and gs
	Login *Credentials // nil: nobody. Sent over https alone, and to no host but the first
}

// Store says how a bucket is reached. Empty fields take the defaults of AWS or Google.
type Store struct {
	Endpoint  string // https://host[:port][/path]
	Region    string // that signatures name
	PathStyle bool   // https://endpoint/bucket/key and not https://bucket.endpoint/key
}

// Options say how a server is reached.
type Options struct {
	Transport http.RoundTripper // carries all requests, redirected ones too
	PlainHTTP bool              // permits http://

	now   func() time.Time
	pause func(context.Context, time.Duration) error
	stall time.Duration
}

// Object is a resolved object: no content has been fetched.
type Object struct {
	URI       string // without a query
	Size      int64  // bytes as stored
	PlainHTTP bool   // content came without TLS; Unpack may find that out too

	// Set by Unpack.
	Digest  string // sha256:… of the bytes as fetched
	Content string // sha256:… of the plaintext, before it is expanded; Digest, if it is not encrypted

	client *client
	etag   string // strong, or empty
	first  byte   // of the content
}

// Error is a failure that belongs to one object.
type Error struct {
	URI string // without a query
	Err error
}

func (e *Error) Error() string { return fmt.Sprintf("object %s: %v", e.URI, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Resolve learns an object's size. It asks for the first byte and for no more: unlike HEAD that is what a pre-signed URL permits.
// Errors are [*Error].
func Resolve(ctx context.Context, src Source, o Options) (*Object, error) {
	name, _, _ := strings.Cut(src.URI, "?")
	c, err := open(src, o)
	if err != nil {
		return nil, &Error{name, err}
	}
	obj := &Object{URI: name, client: c}
	if err := obj.resolve(ctx); err != nil {
		return nil, &Error{name, err}
	}
	obj.PlainHTTP = c.usedPlain
	return obj, nil
}

func (o *Object) resolve(ctx context.Context) error {
	resp, err := o.client.get(ctx, http.Header{"Range": {"bytes=0-0"}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	o.Size = -1
	switch resp.StatusCode {
	case http.StatusOK: // the server does not do ranges; its body is left where it is
		o.Size = resp.ContentLength
	case http.StatusPartialContent:
		if o.Size, err = contentRange(resp, 0); err != nil {
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable: // of nothing there is no first byte
		if resp.Header.Get("Content-Range") == "bytes */0" {
			o.Size = 0
			return nil
		}
		fallthrough
	default:
		return statusError(resp)
	}
	if o.Size < 0 {
		return fmt.Errorf("%w: the server does not say how large it is, so memory cannot be held ready; serve it as a file", ErrFormat)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("%w: the server sends it as %.40q, which was not asked for; store it without a Content-Encoding", ErrFormat, e)
	}
	if e := resp.Header.Get("Etag"); strings.HasPrefix(e, `"`) && len(e) <= 256 {
		o.etag = e
	}
	if o.Size > 0 {
		var b [1]byte
		if _, err := io.ReadFull(resp.Body, b[:]); err != nil {
			return fmt.Errorf("%w: not even its first byte came: %w", ErrTruncated, err)
		}
		o.first = b[0]
	}
	return nil
}

// CheckSealed refuses an object that cannot be an encrypted one, before a byte is fetched.
func (o *Object) CheckSealed() error {
	if err := checkSealed(o.Size, o.first); err != nil {
		return &Error{o.URI, err}
	}
	return nil
}

// Limits bound what one object may be and may unpack to.
type Limits = tree.Limits

// Want is what an object must be, and what becomes of it.
type Want struct {
	Key              []byte // 32 bytes; nil: the object is not encrypted
	SHA256, SHA3_256 []byte // of the plaintext, before it is expanded; nil: not checked
	Expand           bool   // it is an archive, zip or tar, whose entries are wanted
	Name             string // of the one file, if not
}

// Unpack fetches the object and lays it out in dir, which must not exist and whose parent must. Everything is written beside dir and
// renamed to it only when the tag and the digests hold; on error nothing stays. Twice its size is never held: ciphertext becomes plaintext
// where it lies. progress, if not nil, gets the bytes just fetched. Errors are [*Error].
func (o *Object) Unpack(ctx context.Context, dir string, w Want, lim Limits, progress func(int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	if err := o.unpack(ctx, dir, w, lim, progress); err != nil {
		return &Error{o.URI, err}
	}
	return nil
}

func (o *Object) unpack(ctx context.Context, dir string, w Want, lim Limits, progress func(int64)) (err error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpack to %s: it exists already or cannot be looked at", dir)
	}
	if lim.Bytes > 0 && o.Size > lim.Bytes {
		return fmt.Errorf("%w: it has %d bytes and %d may be unpacked", ErrTooBig, o.Size, lim.Bytes)
	}
	if w.Key != nil {
		if err := checkKey(w.Key); err != nil {
			return err
		}
		if err := checkSealed(o.Size, o.first); err != nil {
			return err
		}
	}
	staging, err := os.MkdirTemp(filepath.Dir(dir), ".unpacking-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staging))
		}
	}()
	spool, err := os.CreateTemp(filepath.Dir(dir), ".spool-*")
	if err != nil {
		return err
	}
	defer spool.Close()
	defer os.Remove(spool.Name()) // unless it has become the file

	sum, err := o.fetch(ctx, spool, progress)
	if err != nil {
		return err
	}
	o.PlainHTTP = o.client.usedPlain
	size := o.Size
	o.Digest = digest(sum)
	if w.Key != nil {
		if size, err = decrypt(ctx, spool, size, w.Key); err != nil {
			return err
		}
		sum = nil
	}
	if err := o.verify(spool, sum, w); err != nil {
		return err
	}
	if w.Expand {
		err = unarchive(ctx, staging, spool, size, lim)
	} else {
		err = place(staging, spool, w.Name)
	}
	if err != nil {
		return err
	}
	return os.Rename(staging, dir)
}

// verify holds the plaintext against its digests. sum is its SHA-256, if that is known.
func (o *Object) verify(spool *os.File, sum []byte, w Want) (err error) {
	if sum == nil {
		if sum, err = hashOf(spool, sha256.New()); err != nil {
			return err
		}
	}
	o.Content = digest(sum)
	if w.SHA256 != nil && !bytes.Equal(sum, w.SHA256) {
		return fmt.Errorf("%w: the file has SHA-256 %x and the manifest says %x", ErrDigest, sum, w.SHA256)
	}
	if w.SHA3_256 == nil {
		return nil
	}
	if sum, err = hashOf(spool, sha3.New256()); err == nil && !bytes.Equal(sum, w.SHA3_256) {
		err = fmt.Errorf("%w: the file has SHA3-256 %x and the manifest says %x", ErrDigest, sum, w.SHA3_256)
	}
	return err
}

func hashOf(f *os.File, h hash.Hash) ([]byte, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	_, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, chunkSize))
	return h.Sum(nil), err
}

// place makes the spool the one file of dir: it is renamed, not copied.
func place(dir string, spool *os.File, name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %.260q is no name for a file", ErrFormat, name)
	}
	if err := spool.Chmod(0o644); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(spool.Name(), filepath.Join(dir, name))
}

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }
