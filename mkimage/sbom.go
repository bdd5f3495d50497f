package mkimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

// sbom is the bill of materials of an image: CycloneDX 1.6 in JSON, of what is in it and what it was compiled with.
func sbom(i *Info) ([]byte, error) {
	sha := func(hash string) *[]cdx.Hash { return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hash}} }
	image := cdx.Component{
		BOMRef: "image", Type: cdx.ComponentTypeOS, Name: "ampoule", Version: i.Profile,
		Description: "one-shot confidential VM: kernel, initramfs and command line",
	}
	initProgram := cdx.Component{
		BOMRef: "init", Type: cdx.ComponentTypeApplication, Name: "github.com/ampoule-vm/ampoule/init", Hashes: sha(i.Init.SHA256),
		Properties: &[]cdx.Property{{Name: "ampoule:source_sha256", Value: i.Source}},
	}
	kernel := cdx.Component{
		BOMRef: "kernel", Type: cdx.ComponentTypeOS, Name: "linux", Version: i.Kernel.Version, Hashes: sha(i.Kernel.SHA256),
		PackageURL: debianURL(i.Kernel.Package, i.Kernel.PackageVersion), Licenses: licence("GPL-2.0-only"),
		Properties: &[]cdx.Property{
			{Name: "ampoule:source_sha256", Value: i.Kernel.SourceSHA256},
			{Name: "ampoule:config_sha256", Value: i.Kernel.ConfigSHA256},
			{Name: "ampoule:gcc", Value: i.Kernel.GCC},
			{Name: "ampoule:ld", Value: i.Kernel.LD},
			{Name: "ampoule:zstd", Value: i.Kernel.Zstd},
		},
	}
	gover := strings.TrimPrefix(i.Init.Go, "go")
	std := cdx.Component{BOMRef: "go", Type: cdx.ComponentTypeLibrary, Name: "std", Version: gover, PackageURL: "pkg:golang/std@" + gover, Licenses: licence("BSD-3-Clause")}

	components := []cdx.Component{kernel, initProgram, std}
	parts := []string{kernel.BOMRef, initProgram.BOMRef}
	refs := func(modules []Module) *[]string {
		out := []string{std.BOMRef}
		for _, m := range modules {
			out = append(out, moduleURL(m))
		}
		return &out
	}
	needs := []cdx.Dependency{{Ref: initProgram.BOMRef, Dependencies: refs(i.Init.Linked)}}
	for _, name := range slices.Sorted(maps.Keys(i.Init.Helpers)) {
		h := i.Init.Helpers[name]
		c := cdx.Component{BOMRef: "with-" + name, Type: cdx.ComponentTypeApplication, Name: "github.com/ampoule-vm/ampoule, --with " + name, Hashes: sha(h.SHA256)}
		components, parts = append(components, c), append(parts, c.BOMRef)
		needs = append(needs, cdx.Dependency{Ref: c.BOMRef, Dependencies: refs(h.Linked)})
	}
	for _, m := range i.Init.linked() {
		c := cdx.Component{
			BOMRef: moduleURL(m), Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: moduleURL(m),
		}
		// h1 is the SHA-256 of a list of the module's files and their digests (golang.org/x/mod/sumdb/dirhash), no file's own.
		if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(b) == sha256.Size {
			c.Properties = &[]cdx.Property{{Name: "ampoule:go_sum", Value: m.Sum}}
		}
		components = append(components, c)
	}
	if s := i.Stub; s != nil {
		components = append(components, cdx.Component{
			BOMRef: "stub", Type: cdx.ComponentTypeFirmware, Name: "systemd-stub", Version: s.Version, Hashes: sha(s.SHA256),
			PackageURL: debianURL(s.Package, s.Version), Licenses: licence("LGPL-2.1-or-later"),
		})
		parts = append(parts, "stub")
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = serial(i)
	bom.Metadata = &cdx.Metadata{Timestamp: date.Format(time.RFC3339), Component: &image}
	bom.Components = &components
	needs = append([]cdx.Dependency{{Ref: image.BOMRef, Dependencies: &parts}}, needs...)
	bom.Dependencies = &needs
	var buf bytes.Buffer
	err := cdx.NewBOMEncoder(&buf, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6)
	return buf.Bytes(), err
}

func moduleURL(m Module) string { return "pkg:golang/" + m.Path + "@" + m.Version }

func licence(id string) *cdx.Licenses {
	return &cdx.Licenses{{License: &cdx.License{ID: id}}}
}

// debianURL is the package URL of a Debian package; "" when its version is not known.
func debianURL(pkg, version string) string {
	if version == "" {
		return ""
	}
	return fmt.Sprintf("pkg:deb/debian/%s@%s?arch=amd64", pkg, strings.NewReplacer("+", "%2B", "~", "~", ":", "%3A").Replace(version))
}

// serial is a UUID of version 8 over the digests of what the image is, so that equal images have equal bills.
func serial(i *Info) string {
	h := sha256.New()
	for _, f := range i.Files {
		fmt.Fprintf(h, "%s  %s\n", f.SHA256, f.Name)
	}
	var u uuid.UUID
	copy(u[:], h.Sum(nil))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return u.URN()
}

// A statement of in-toto (Statement v1) with provenance of SLSA (v1). Neither says when or by whom: two builders of the
// same image state the same, and each signs with its own key.
type statement struct {
	Type          string         `json:"_type"`
	Subject       []resource     `json:"subject"`
	PredicateType string         `json:"predicateType"`
	Predicate     slsaProvenance `json:"predicate"`
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
	Notes  map[string]string `json:"annotations,omitempty"`
}

type slsaProvenance struct {
	BuildDefinition struct {
		BuildType            string     `json:"buildType"`
		ExternalParameters   any        `json:"externalParameters"`
		InternalParameters   any        `json:"internalParameters"`
		ResolvedDependencies []resource `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// What the provenance calls this kind of build, and whoever does it.
const (
	buildType = "https://github.com/ampoule-vm/ampoule/blob/main/docs/IMAGES.md"
	builderID = "https://github.com/ampoule-vm/ampoule/tree/main/mkimage"
)

func provenance(i *Info) ([]byte, error) {
	s := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	for _, f := range i.Files {
		s.Subject = append(s.Subject, resource{Name: f.Name, Digest: sha256Of(f.SHA256)})
	}
	d := &s.Predicate.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters = struct {
		Profile string   `json:"profile"`
		Allow   []string `json:"allow"`
		Request
	}{i.Profile, i.Allow, i.Request}
	d.InternalParameters = map[string]string{"cmdline": i.Cmdline, "gcc": i.Kernel.GCC, "ld": i.Kernel.LD, "go": i.Init.Go}
	d.ResolvedDependencies = []resource{
		{Name: "ampoule", Digest: sha256Of(i.Source), Notes: map[string]string{"digest": "over the lines of sha256sum for each source file"}},
		{Name: i.Kernel.Package, URI: debianURL(i.Kernel.Package, i.Kernel.PackageVersion), Digest: sha256Of(i.Kernel.SourceSHA256)},
	}
	if i.Stub != nil {
		d.ResolvedDependencies = append(d.ResolvedDependencies, resource{Name: stubPath, URI: debianURL(i.Stub.Package, i.Stub.Version), Digest: sha256Of(i.Stub.SHA256)})
	}
	for _, m := range i.Init.linked() {
		r := resource{URI: moduleURL(m)}
		if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(b) == sha256.Size {
			r.Digest = map[string]string{"dirHash": hex.EncodeToString(b)} // the in-toto name of Go's h1
		}
		d.ResolvedDependencies = append(d.ResolvedDependencies, r)
	}
	s.Predicate.RunDetails.Builder.ID = builderID
	return asJSON(s)
}

func sha256Of(hash string) map[string]string { return map[string]string{"sha256": hash} }
