package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A python is an OCI image with the interpreter of Debian's packages, made without Docker and without root: one
// layer of C libraries and one of Python. It is cached, for it depends on nothing but the packages' versions.
type python struct {
	cache string
	say   func(string, ...any)
}

// layers of the base image: package names, with %s for Python's version.
var pythonLayers = [][]string{
	{"libc6", "zlib1g", "libexpat1"},
	{"libpython%s-minimal", "python%[1]s-minimal", "libpython%[1]s-stdlib"},
}

// image returns the base image and the path of its interpreter.
func (p python) image(ctx context.Context) (v1.Image, string, error) {
	version, err := pythonVersion(ctx)
	if err != nil {
		return nil, "", err
	}
	var names [][]string
	var pins []string
	for _, layer := range pythonLayers {
		var l []string
		for _, name := range layer {
			if strings.Contains(name, "%") {
				name = fmt.Sprintf(name, version)
			}
			pin, err := candidate(ctx, name)
			if err != nil {
				return nil, "", err
			}
			l, pins = append(l, pin), append(pins, pin)
		}
		names = append(names, l)
	}
	interpreter := "/usr/bin/python" + version
	dir := filepath.Join(p.cache, "demo", fmt.Sprintf("python-%x", sha256.Sum256([]byte(strings.Join(pins, " ")+layoutVersion)))[:23])
	if img, err := image.Load(ctx, dir, image.Options{}); err == nil {
		return img, interpreter, nil
	}
	img, err := p.build(ctx, names, interpreter)
	if err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(tmp)
	if err := image.Save(img, filepath.Join(tmp, "layout")); err != nil {
		return nil, "", err
	}
	if err := os.Rename(filepath.Join(tmp, "layout"), dir); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, "", err
	}
	img, err = image.Load(ctx, dir, image.Options{})
	return img, interpreter, err
}

// layoutVersion enters the cache key: it changes when the code below writes other bytes from the same packages.
const layoutVersion = "3"

func (p python) build(ctx context.Context, layers [][]string, interpreter string) (v1.Image, error) {
	var all []v1.Layer
	for _, pins := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, pin := range pins {
			p.say("demo: Debian package %s", pin)
			if err := p.copyPackage(ctx, w, pin); err != nil {
				return nil, fmt.Errorf("package %s: %w", pin, err)
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		l, err := layerOf(buf.Bytes())
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	img, err := mutate.AppendLayers(nothing, all...)
	if err != nil {
		return nil, err
	}
	return configure(img, v1.Config{
		Entrypoint: []string{interpreter},
		Env:        []string{"PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8"},
	})
}

// nothing is an image to begin with. It is OCI's, as our layers are: Docker's, which the library begins with, have no zstd
// layers, and skopeo refuses the mixture.
var nothing = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)

// configure sets an image's run configuration, and its platform, which an image made from nothing lacks.
func configure(img v1.Image, c v1.Config) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", "amd64", c
	return mutate.ConfigFile(img, cf)
}

// Layer is a zstd layer with the given files, by path, world-readable and of no date.
func Layer(files map[string]string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode := int64(0o644)
		if strings.HasPrefix(files[name], "\x7fELF") {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(files[name])), Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layerOf(buf.Bytes())
}

func layerOf(b []byte) (v1.Layer, error) {
	// zstd unpacks twice as fast as gzip in the VM.
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
}

// unwanted is what a run does not need: documentation, Python's own tests, its build files and its editor.
var unwanted = regexp.MustCompile(`^usr/share/(doc|man|lintian|doc-base|python3)/|^usr/lib/python3\.[0-9]+/(test|idlelib|ensurepip|config-[^/]*|lib2to3|pydoc_data)(/|$)|^usr/lib/x86_64-linux-gnu/gconv(/|$)`)

func (p python) copyPackage(ctx context.Context, w *tar.Writer, pin string) error {
	deb, err := p.download(ctx, pin)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		h.Name = strings.TrimPrefix(path.Clean(h.Name), "./")
		if h.Name == "." || unwanted.MatchString(h.Name) {
			continue
		}
		h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	return cmd.Wait()
}

// download fetches NAME=VERSION from the package archive; apt checks its signature.
func (p python) download(ctx context.Context, pin string) (string, error) {
	dir := filepath.Join(p.cache, "debs", strings.NewReplacer("=", "_", ":", "-", "~", "-").Replace(pin))
	if found, _ := filepath.Glob(filepath.Join(dir, "*.deb")); len(found) == 1 {
		return found[0], nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "apt-get", "download", pin)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w\n%s", pin, err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	found, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(found) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d packages in %s", pin, len(found), dir)
	}
	return found[0], nil
}

var pythonPackage = regexp.MustCompile(`Depends: python(3\.[0-9]+)-minimal`)

// pythonVersion is the version of Debian's default Python, such as 3.11.
func pythonVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "python3-minimal").Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends python3-minimal: %w", err)
	}
	m := pythonPackage.FindSubmatch(out)
	if m == nil {
		return "", errors.New("the package lists know no python3-minimal: run apt-get update")
	}
	return string(m[1]), nil
}

var candidateLine = regexp.MustCompile(`(?m)^  Candidate: (\S+)$`)

// candidate is NAME=VERSION as the package archive serves it now.
func candidate(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "policy", name).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache policy %s: %w", name, err)
	}
	m := candidateLine.FindSubmatch(out)
	if m == nil || string(m[1]) == "(none)" {
		return "", fmt.Errorf("the package lists know no %s: run apt-get update", name)
	}
	return name + "=" + string(m[1]), nil
}
