//go:build !guest

package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxEntries bounds a tar that holds an OCI layout.
const maxEntries = 1 << 16

const layoutMark, indexName = "oci-layout", "index.json"

// blobs are an OCI layout's files, by their slashed names: a folder's, or those of a tar. Nothing is copied; the caller
// closes what it opens.
type blobs interface {
	open(name string) (rc io.ReadCloser, size int64, err error)
}

type folder string

func (f folder) open(name string) (io.ReadCloser, int64, error) {
	file, err := os.Open(filepath.Join(string(f), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	fi, err := file.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, fi.Size(), nil
}

// archive is a tar that is read in place.
type archive struct {
	file string
	at   map[string]extent
}

type extent struct{ offset, size int64 }

// openArchive learns where a tar has its files, and whether it is an OCI layout.
func openArchive(file string) (a *archive, isLayout bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	a = &archive{file, map[string]extent{}}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, false, fmt.Errorf("%s as a tar: %w", file, err)
		}
		if h.Typeflag != tar.TypeReg || len(a.at) == maxEntries || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			continue // folders; and what is no plain file is missed by whoever asks for it
		}
		at, err := f.Seek(0, io.SeekCurrent) // the reader has no buffer
		if err != nil {
			return nil, false, err
		}
		a.at[path.Clean(h.Name)] = extent{at, h.Size}
	}
	_, isLayout = a.at[layoutMark]
	_, docker := a.at["manifest.json"] // `docker save` writes both of late; its own names the image
	return a, isLayout && !docker, nil
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	at, ok := a.at[name]
	if !ok {
		return nil, 0, fmt.Errorf("%s in %s: %w", name, a.file, os.ErrNotExist)
	}
	f, err := os.Open(a.file)
	if err != nil {
		return nil, 0, err
	}
	return &struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, at.offset, at.size), f}, at.size, nil
}

// small reads a file of at most limit bytes.
func small(b blobs, name string, limit int64) ([]byte, error) {
	rc, size, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if size > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d are read", name, ErrTooBig, size, limit)
	}
	return io.ReadAll(io.LimitReader(rc, limit))
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// named reads a document of a layout, which must have the digest that it is named by.
func named(b blobs, h v1.Hash, limit int64) ([]byte, error) {
	if !isDigest(h.String()) {
		return nil, fmt.Errorf("%w: digest %.80q is not sha256 and 64 hex digits", ErrFormat, h)
	}
	doc, err := small(b, blobName(h), limit)
	if err == nil && digestOf(doc) != h.String() {
		err = fmt.Errorf("%w: %s holds %s", ErrDigest, blobName(h), digestOf(doc))
	}
	return doc, err
}

// layoutImage is the one image of a layout, or the one for platform.
func layoutImage(b blobs, platform string) (v1.Image, error) {
	doc, err := small(b, indexName, maxManifest)
	if err != nil {
		return nil, err
	}
	for range 2 { // index.json itself, and the index that it may name
		m, err := v1.ParseIndexManifest(bytes.NewReader(doc))
		if err != nil {
			return nil, fmt.Errorf("%w: index: %w", ErrFormat, err)
		}
		d, err := pick(m, platform)
		if err != nil {
			return nil, err
		}
		if doc, err = named(b, d.Digest, maxManifest); err != nil {
			return nil, err
		}
		if d.MediaType.IsImage() {
			return partial.CompressedToImage(&storedImage{b, doc, d.MediaType})
		}
	}
	return nil, fmt.Errorf("%w: an index inside an index inside the layout's", ErrFormat)
}

func pick(m *v1.IndexManifest, platform string) (v1.Descriptor, error) {
	var all, fit []v1.Descriptor
	for _, d := range m.Manifests {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		all = append(all, d)
		if p := d.Platform; p != nil && p.OS+"/"+p.Architecture == platform {
			fit = append(fit, d)
		}
	}
	if len(all) > 1 {
		all = fit
	}
	if len(all) != 1 {
		return v1.Descriptor{}, fmt.Errorf("%w: the layout has %d manifests and %d for %s; one image is wanted", ErrFormat, len(m.Manifests), len(fit), platform)
	}
	return all[0], nil
}

// storedImage is an image of a layout.
type storedImage struct {
	blobs
	manifest  []byte
	mediaType types.MediaType
}

func (s *storedImage) MediaType() (types.MediaType, error) { return s.mediaType, nil }
func (s *storedImage) RawManifest() ([]byte, error)        { return s.manifest, nil }

func (s *storedImage) parsed() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(s.manifest))
}

func (s *storedImage) RawConfigFile() ([]byte, error) {
	m, err := s.parsed()
	if err != nil {
		return nil, err
	}
	return named(s, m.Config.Digest, maxConfig)
}

func (s *storedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	m, err := s.parsed()
	if err != nil {
		return nil, err
	}
	for _, d := range append(m.Layers, m.Config) {
		if d.Digest == h && isDigest(h.String()) {
			return &storedLayer{s, d}, nil
		}
	}
	return nil, fmt.Errorf("the image has no layer %s", h)
}

type storedLayer struct {
	blobs
	desc v1.Descriptor
}

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *storedLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *storedLayer) Descriptor() (*v1.Descriptor, error) { return l.desc.DeepCopy(), nil }
func (l *storedLayer) Compressed() (io.ReadCloser, error) {
	rc, _, err := l.open(blobName(l.desc.Digest))
	return rc, err
}

// SaveArchive writes img to file, which must not exist, as an OCI layout in a tar: what skopeo calls oci-archive. The same
// image gives the same bytes.
func SaveArchive(img v1.Image, file string) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(fmt.Errorf("write OCI archive %s: %w", file, err), os.Remove(file))
		}
	}()
	w := tar.NewWriter(f)
	if err := writeArchive(w, img); err != nil {
		return err
	}
	return w.Close()
}

func writeArchive(w *tar.Writer, img v1.Image) error {
	put := func(name string, b []byte) error { return entry(w, name, int64(len(b)), bytes.NewReader(b)) }
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{MediaType: mediaType, Digest: hashOf(manifest), Size: int64(len(manifest))}}})
	if err != nil {
		return err
	}
	err = cmp.Or(put(layoutMark, []byte(`{"imageLayoutVersion":"1.0.0"}`)), put(indexName, index),
		put(blobName(hashOf(manifest)), manifest), put(blobName(hashOf(config)), config))
	if err != nil {
		return err
	}
	written := map[v1.Hash]bool{hashOf(manifest): true, hashOf(config): true}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		if written[h] {
			continue
		}
		written[h] = true
		size, err := l.Size()
		if err != nil {
			return err
		}
		rc, err := l.Compressed()
		if err != nil {
			return err
		}
		if err := errors.Join(entry(w, blobName(h), size, rc), rc.Close()); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one file, of size bytes. It reads r to its end, where a layer's reader says whether it was what it should be.
func entry(w *tar.Writer, name string, size int64, r io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	n, err := io.Copy(w, r)
	if err == nil && n != size {
		err = fmt.Errorf("%w: %s has %d bytes, want %d", ErrTruncated, name, n, size)
	}
	return err
}
