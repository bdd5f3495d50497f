package mkimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/measure"
	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// What is written about an image, beside InfoFile.
const (
	MeasurementsFile = measure.FileName
	SBOMFile         = "sbom.cdx.json"          // CycloneDX
	ProvenanceFile   = "provenance.intoto.json" // in-toto statement with SLSA provenance
	SumsFile         = "SHA256SUMS"             // of all the others, for sha256sum -c
)

// Request is what was asked for, as far as the command line of the image does not say it.
type Request struct {
	Net            string   `json:"net,omitempty"`
	Swap           string   `json:"swap,omitempty"`
	ManifestSource string   `json:"manifest_source,omitempty"`
	ManifestSHA384 string   `json:"manifest_sha384,omitempty"` // hex
	Deadline       string   `json:"deadline,omitempty"`
	Extra          string   `json:"cmdline,omitempty"`
	InitPackage    string   `json:"init"`
	Tags           []string `json:"tags,omitempty"`
	With           []string `json:"with,omitempty"`
	Formats        []string `json:"formats,omitempty"`
	Resources      []string `json:"resources,omitempty"`
}

func (o Options) request() Request {
	r := Request{
		Net: o.Net, Swap: o.Swap, ManifestSource: o.ManifestSource, ManifestSHA384: hex.EncodeToString(o.ManifestSHA384), Extra: o.Extra,
		InitPackage: o.InitPackage, Tags: o.Tags, With: o.With, Formats: o.Formats, Resources: o.Resources,
	}
	if o.Deadline != 0 {
		r.Deadline = o.Deadline.String()
	}
	return r
}

// options is the request again, for building the same image from dir's.
func (i *Info) options(dir string) (o Options, err error) {
	r := i.Request
	o = Options{
		Profile: i.Profile, Allow: append([]string{}, i.Allow...), Net: r.Net, Swap: r.Swap, ManifestSource: r.ManifestSource, Extra: r.Extra,
		InitPackage: r.InitPackage, Tags: r.Tags, With: r.With, Formats: r.Formats, Resources: r.Resources,
	}
	if r.Deadline != "" {
		if o.Deadline, err = time.ParseDuration(r.Deadline); err != nil {
			return o, err
		}
	}
	if r.ManifestSHA384 != "" {
		if o.ManifestSHA384, err = hex.DecodeString(r.ManifestSHA384); err != nil {
			return o, err
		}
	}
	if i.File(ManifestFile) != (File{}) {
		if o.Manifest, err = os.ReadFile(filepath.Join(dir, ManifestFile)); err != nil {
			return o, err
		}
	}
	if i.File(ShapesFile) != (File{}) {
		if o.Shapes, err = os.ReadFile(filepath.Join(dir, ShapesFile)); err != nil {
			return o, err
		}
	}
	return o, nil
}

// add puts files of dir into the record.
func (i *Info) add(dir string, names []string) error {
	for _, name := range names {
		sum, size, err := sumFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		i.Files = append(i.Files, File{name, sum, size})
	}
	return nil
}

// publishRecords writes what there is to say about the image: the build record last.
func (o Options) publishRecords(info *Info) error {
	measured, err := o.measurements(info)
	if err != nil {
		return err
	}
	if err := info.add(o.Out, measured); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		make func(*Info) ([]byte, error)
	}{{SBOMFile, sbom}, {ProvenanceFile, provenance}} {
		b, err := f.make(info)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err := writeFile(filepath.Join(o.Out, f.name), b); err != nil {
			return err
		}
		info.Files = append(info.Files, describe(f.name, b))
	}
	record, err := asJSON(info)
	if err != nil {
		return err
	}
	sums := ""
	for _, f := range append(slices.Clone(info.Files), describe(InfoFile, record)) {
		sums += f.SHA256 + "  " + f.Name + "\n"
	}
	if err := writeFile(filepath.Join(o.Out, SumsFile), []byte(sums)); err != nil {
		return err
	}
	return writeFile(filepath.Join(o.Out, InfoFile), record)
}

func asJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return buf.Bytes(), err
}

// sourceDigest is the SHA-256 over the files of the module in o.SourceDir that init, the programs beside it and this package
// are compiled from, and over what pins the modules that they use: one line "sha256  path" each, sorted by path.
func (o Options) sourceDigest(ctx context.Context) (string, error) {
	args := []string{"list", "-deps", "-tags", guestTags(o.initTags()), "-json=Dir,Module,GoFiles,SFiles,EmbedFiles", o.InitPackage, "./mkimage"}
	for _, name := range o.With {
		if h := helpers[name]; h.pkg != "" {
			args = append(args, h.pkg)
		}
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = o.SourceDir, goEnviron(os.Environ())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	lines := map[string]string{}
	add := func(root, path string) error {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		sum, _, err := sumFile(path)
		lines[filepath.ToSlash(rel)] = sum
		return err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir    string
			Module *struct {
				Main bool
				Dir  string
			}
			GoFiles, SFiles, EmbedFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("go list: %w", err)
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		for _, path := range slices.Concat(p.GoFiles, p.SFiles, p.EmbedFiles, []string{
			filepath.Join(p.Module.Dir, "go.mod"), filepath.Join(p.Module.Dir, "go.sum")}) {
			if !filepath.IsAbs(path) {
				path = filepath.Join(p.Dir, path)
			}
			if err := add(p.Module.Dir, path); err != nil {
				return "", err
			}
		}
	}
	var all []string
	for path, sum := range lines {
		all = append(all, sum+"  "+path+"\n")
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(a[64:], b[64:]) })
	sum := sha256.Sum256([]byte(strings.Join(all, "")))
	return hex.EncodeToString(sum[:]), nil
}

// date is that of all that is dated in an image: no build knows what time it is.
var date = kernelconfig.Pin.Date.UTC()
