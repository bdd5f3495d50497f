package mkimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Whether a kernel comes from the source that kernel-config names, or from what the archive had instead.
const (
	Pinned   = "pinned"
	Unpinned = "unpinned"
)

// Info is the build record of an image: what it is made from, and the digests of what came out.
type Info struct {
	Profile string     `json:"profile"`
	Allow   []string   `json:"allow"` // sorted; what the command line permits beyond the strict default
	Cmdline string     `json:"cmdline"`
	Kernel  KernelInfo `json:"kernel"`
	Init    InitInfo   `json:"init"`
	Request Request    `json:"request"`
	Source  string     `json:"source_sha256"` // of Ampoule's own: what init and the build itself are compiled from, and go.mod and go.sum

	Stub      *Stub     `json:"efi_stub,omitempty"`  // of the UKI
	Signature *SignInfo `json:"signature,omitempty"` // of the UKI

	Files []File `json:"files"` // kernel, initramfs, command line, in this order, then the rest; all but this one and SumsFile
}

// KernelInfo is where a kernel comes from. Digests are SHA-256 in lower-case hex.
type KernelInfo struct {
	Version        string `json:"version"`                   // as uname -r says
	Package        string `json:"package"`                   // Debian source package
	PackageVersion string `json:"package_version,omitempty"` // absent when the source was given by path and is not the pinned one
	SourceSHA256   string `json:"source_sha256"`
	Label          string `json:"label"` // Pinned or Unpinned
	SHA256         string `json:"sha256"`
	Size           int64  `json:"size"`
	ConfigSHA256   string `json:"config_sha256"`
	GCC            string `json:"gcc"` // first line of --version
	LD             string `json:"ld"`
	Zstd           string `json:"zstd,omitempty"` // likewise; absent for kernels of a cache from before it was recorded
	CacheKey       string `json:"cache_key"`
}

// InitInfo is where /init comes from.
type InitInfo struct {
	SHA256     string `json:"sha256"`
	Size       int64  `json:"size"`
	Go         string `json:"go"`
	Modules    int    `json:"modules"`        // linked in, without our own
	ModuleSums string `json:"modules_sha256"` // over one line "path version sum" each, sorted

	Helpers map[string]*InitInfo `json:"helpers,omitempty"` // programs beside /init, by their name in Options.With

	Linked []Module `json:"linked"` // the modules, sorted by path
}

// Module is one module that is linked in. Sum is that of go.sum.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"`
}

// linked are the modules of init and of the programs beside it, each once, sorted by path.
func (i InitInfo) linked() []Module {
	all := slices.Clone(i.Linked)
	for _, h := range i.Helpers {
		all = append(all, h.Linked...)
	}
	slices.SortFunc(all, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	return slices.Compact(all)
}

// File is one file of an image.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

func describe(name string, data []byte) File { return File{name, hexSum(data), int64(len(data))} }

func hexSum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// File returns the record of one file of the image; the zero File when there is none of that name.
func (i *Info) File(name string) File {
	for _, f := range i.Files {
		if f.Name == name {
			return f
		}
	}
	return File{}
}

const maxInfo = 1 << 20

// Load reads the build record of the image in dir, strictly, and checks every file that it names against it.
func Load(dir string) (*Info, error) {
	path := filepath.Join(dir, InfoFile)
	info := new(Info)
	if err := readJSON(path, info); err != nil {
		return nil, err
	}
	var names []string
	for _, f := range info.Files {
		names = append(names, f.Name)
	}
	if want := []string{KernelFile, InitramfsFile, CmdlineFile}; len(names) < 3 || !slices.Equal(names[:3], want) {
		return nil, fmt.Errorf("%s lists the files %q, want %q first; build the image again", path, names, want)
	}
	for _, n := range names {
		if !filepath.IsLocal(n) {
			return nil, fmt.Errorf("%s lists %q, which is not below its own folder", path, n)
		}
	}
	for _, f := range info.Files {
		if err := f.check(dir); err != nil {
			return nil, err
		}
	}
	if f := describe(CmdlineFile, []byte(info.Cmdline)); f != info.File(CmdlineFile) {
		return nil, fmt.Errorf("%s holds another command line than %s; build the image again", path, CmdlineFile)
	}
	if f := info.File(KernelFile); f.SHA256 != info.Kernel.SHA256 || f.Size != info.Kernel.Size {
		return nil, fmt.Errorf("%s describes another kernel than %s; build the image again", path, KernelFile)
	}
	return info, nil
}

func (f File) check(dir string) error {
	path := filepath.Join(dir, f.Name)
	sum, size, err := sumFile(path)
	if err != nil {
		return err
	}
	if size != f.Size || sum != f.SHA256 {
		return fmt.Errorf("%s has %d bytes and sha256 %s, but %s says %d and %s; build the image again",
			path, size, sum, InfoFile, f.Size, f.SHA256)
	}
	return nil
}

// readJSON reads one JSON value of at most 1 MiB with no unknown field and nothing after it.
func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInfo+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxInfo {
		return fmt.Errorf("%s is larger than %d bytes", path, maxInfo)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s goes on after its end", path)
	}
	return nil
}

// sumFile returns the SHA-256 of a file, in hex, and its size.
func sumFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
