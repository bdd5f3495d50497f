package mkimage

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/u-root/mkuimage/cpio"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/disk"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/keypolicy"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/uki"
)

// sharedStub is fetched once for all tests.
func sharedStub(t *testing.T) []byte {
	t.Helper()
	o, err := Options{Profile: cmdline.Simulation}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := o.stub(t.Context())
	if errors.Is(err, ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// small are options for an image of everything but the real init and kernel, which take long.
func small(t *testing.T) Options {
	t.Helper()
	dir := fixture(t, t.TempDir())
	write(t, filepath.Join(dir, "mkimage/mkimage.go"), "package mkimage\n")
	write(t, filepath.Join(dir, "go.sum"), "")
	o := Options{
		Profile: cmdline.Simulation, Net: "dhcp", SourceDir: dir, Out: filepath.Join(t.TempDir(), "image"), Cache: t.TempDir(), Formats: Formats,
		Progress: io.Discard, Stub: write(t, filepath.Join(t.TempDir(), "stub"), string(sharedStub(t))),
	}
	withKernel(t, o.Cache, o.Profile)
	return o
}

// withKernel puts something into a cache that passes for the kernel.
func withKernel(t *testing.T, cache, profile string) {
	t.Helper()
	tools, err := findToolchain(t.Context())
	if err != nil {
		t.Skip(err)
	}
	o := Options{Cache: cache}
	key := cacheKey(profile, o.sources().pin.SHA256, tools)
	if err := o.publish(key, cachedKernel(key)); err != nil {
		t.Fatal(err)
	}
}

func build(t *testing.T, o Options) *Info {
	t.Helper()
	info, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnImageIsCompleteAndSaysSo(t *testing.T) {
	o := small(t)
	info := build(t, o)
	loaded, err := Load(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	sums := string(read(t, o.Out, SumsFile))
	onDisk, err := filesBelow(o.Out, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range onDisk {
		listed := loaded.File(name) != (File{})
		if own := name == InfoFile || name == SumsFile; listed == own {
			t.Errorf("%s lists %s: %v", InfoFile, name, listed)
		}
		if want := hexSum(read(t, o.Out, name)) + "  " + name + "\n"; name != SumsFile && !strings.Contains(sums, want) {
			t.Errorf("%s has no line %q", SumsFile, want)
		}
	}
	for _, name := range []string{UKIFile, RawFile, GCPFile, AzureFile, QCOW2File, ContainerDiskDir + "/index.json", MeasurementsFile, SBOMFile, ProvenanceFile} {
		if info.File(name) == (File{}) {
			t.Errorf("%s was not made", name)
		}
	}
	if info.Stub == nil || *info.Stub != stubPin || len(info.Source) != 64 {
		t.Errorf("the record has stub %+v and source %q", info.Stub, info.Source)
	}
	// A second image in the same folder leaves nothing of the first.
	o.Formats = nil
	build(t, o)
	if left, err := filesBelow(o.Out, "."); err != nil || slices.ContainsFunc(left, func(n string) bool {
		return n == UKIFile || strings.HasPrefix(n, "disk") || strings.HasPrefix(n, ContainerDiskDir)
	}) {
		t.Errorf("left of the image before: %q (%v)", left, err)
	}
}

// The initramfs that is started with a kernel takes any command line, for it is measured; that of a UKI only its own.
func TestTheUKIHasItsCommandLineTwice(t *testing.T) {
	o := small(t)
	info := build(t, o)
	image := read(t, o.Out, UKIFile)
	section := func(name string) []byte {
		b, err := uki.Find(image, name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got := string(section(uki.Cmdline)); got != info.Cmdline || got != string(read(t, o.Out, CmdlineFile)) {
		t.Errorf("section .cmdline is %q, the image's is %q", got, info.Cmdline)
	}
	if !bytes.Equal(section(uki.Linux), read(t, o.Out, KernelFile)) {
		t.Error("section .linux is another kernel")
	}
	initrd, plain := section(uki.Initrd), read(t, o.Out, InitramfsFile)
	before, found := bytes.CutSuffix(initrd, plain)
	if !found || len(before)%4 != 0 {
		t.Fatalf("section .initrd does not end in %s, or that is at byte %d", InitramfsFile, len(before))
	}
	records, err := cpio.ReadAllRecords(cpio.EOFReader{RecordReader: cpio.Newc.Reader(bytes.NewReader(before))})
	if err != nil || len(records) != 1 || records[0].Name != LineName {
		t.Fatalf("before it are %v, %v; want %s", records, err, LineName)
	}
	if b, err := io.ReadAll(io.NewSectionReader(records[0], 0, int64(records[0].FileSize))); err != nil || string(b) != info.Cmdline {
		t.Errorf("%s is %q, %v", LineName, b, err)
	}
	for _, r := range unpack(t, plain) {
		if r.Name == LineName {
			t.Errorf("%s has a command line", InitramfsFile)
		}
	}
	if parts := disk.Parts(read(t, o.Out, RawFile)); !slices.ContainsFunc(parts, func(p disk.Part) bool { return p.Name == "/"+bootPath && bytes.Equal(p.Data, image) }) {
		t.Errorf("the disk does not have the UKI as %s", bootPath)
	}
}

func TestAManifestThatIsBakedInIsPinned(t *testing.T) {
	o := small(t)
	o.Formats = nil
	o.Manifest = []byte(`{"version":1,"algorithm":{"uri":"docker://registry.example/fit@sha256:2222222222222222222222222222222222222222222222222222222222222222"}}`)
	info := build(t, o)
	line, err := cmdline.Parse(info.Cmdline)
	if err != nil || line.Manifest.Kind != cmdline.Image || len(line.SHA384) != 48 {
		t.Errorf("command line %q: %v", info.Cmdline, err)
	}
	found := false
	for _, r := range unpack(t, read(t, o.Out, InitramfsFile)) {
		b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		found = found || r.Name == ManifestName && bytes.Equal(b, o.Manifest) && err == nil
	}
	if !found || !bytes.Equal(read(t, o.Out, ManifestFile), o.Manifest) {
		t.Error("the manifest is not in the initramfs, or not beside it")
	}
	if c, err := Check(t.Context(), o, o.Out); err != nil || len(c.Differences) > 0 {
		t.Errorf("built again: %+v, %v", c, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Options)
		problem string
	}{
		"a key without its certificate":        {func(o *Options) { o.SecureBootKey = "k" }, "certificate"},
		"a key and nothing to sign":            {func(o *Options) { o.SecureBootKey, o.SecureBootCert, o.Formats = "k", "c", nil }, "format"},
		"a certificate that is none":           {func(o *Options) { o.SecureBootKey, o.SecureBootCert = o.Stub, o.Stub }, "no PEM certificate"},
		"a package that is a flag of go build": {func(o *Options) { o.InitPackage = "-toolexec=/bin/false" }, "no package of the checkout"},
		"a package elsewhere":                  {func(o *Options) { o.InitPackage = "./../elsewhere" }, "no package of the checkout"},
		"a manifest that is none":              {func(o *Options) { o.Manifest = []byte("{}") }, "the manifest to bake in"},
		"resources without a manifest":         {func(o *Options) { o.Resources = []string{"default/key/*"} }, "none is baked in"},
		"no resource, of a manifest": {func(o *Options) {
			o.Resources, o.Manifest = []string{"*"}, []byte(`{"version":1,"algorithm":{"uri":"docker://registry.example/fit@sha256:2222222222222222222222222222222222222222222222222222222222222222"}}`)
		}, "want REPO/TYPE/TAG"},
		"a manifest, and another source":      {func(o *Options) { o.Manifest, o.ManifestSource = []byte("{}"), "vsock:1" }, "so that its source is image:"},
		"the source image without a manifest": {func(o *Options) { o.ManifestSource = "image:" }, "give the manifest"},
		"a stub that is none":                 {func(o *Options) { o.Stub = write(t, filepath.Join(t.TempDir(), "stub"), "stub") }, "EFI stub: not a PE file"},
		"shapes that are none":                {func(o *Options) { o.Shapes = []byte("{}") }, "shapes"},
		"firmware that is not there": {func(o *Options) {
			o.Shapes = []byte(`[{"name":"a","tee":"snp","vmm":"qemu","cpu":"EPYC-Genoa","firmware":"nowhere.fd"}]`)
		}, "nowhere.fd"},
	} {
		t.Run(name, func(t *testing.T) {
			o := small(t)
			c.change(&o)
			info, err := Build(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%v, %v; want an error with %q", info, err, c.problem)
			}
			if _, err := Load(o.Out); err == nil {
				t.Error("the folder looks complete")
			}
		})
	}
}

func TestAProductionImageHasThePinnedStub(t *testing.T) {
	other := write(t, filepath.Join(t.TempDir(), "stub"), "another stub")
	for _, c := range []struct {
		profile, version string
		b                []byte
		label            string
	}{
		{cmdline.Production, "", sharedStub(t), Pinned},
		{cmdline.Simulation, "", sharedStub(t), Pinned},
		{cmdline.Production, "", []byte("another stub"), ""},
		{cmdline.Production, "258-1", []byte("another stub"), ""},
		{cmdline.Simulation, "258-1", []byte("another stub"), Unpinned},
		{cmdline.Simulation, stubPin.Version, []byte("another stub"), ""}, // the version that is pinned, and other bytes
	} {
		s, err := Options{Profile: c.profile, Stub: other}.judgeStub(c.b, c.version)
		if got := ""; err == nil {
			if got = s.Label; got != c.label {
				t.Errorf("%s, version %q: label %q, want %q", c.profile, c.version, got, c.label)
			}
		} else if c.label != "" {
			t.Errorf("%s, version %q: %v", c.profile, c.version, err)
		}
	}
}

// A signature changes neither what firmware measures nor what else is built, and an image with one can be checked by
// whoever does not have the key.
func TestASignedImageIsTheSameImage(t *testing.T) {
	o := small(t)
	build(t, o)
	plain := read(t, o.Out, UKIFile)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	signed := o
	signed.Cache, signed.Out = withDebian(t, o.Cache), filepath.Join(dir, "image")
	signed.SecureBootKey = write(t, filepath.Join(dir, "key"), string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	signed.SecureBootCert = write(t, filepath.Join(dir, "cert"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	info := build(t, signed)
	if info.Signature == nil || info.Signature.Certificate != hexSum(der) || info.Signature.Subject != "CN=db" {
		t.Errorf("the record says %+v", info.Signature)
	}
	image := read(t, signed.Out, UKIFile)
	a, err1 := uki.Digest(plain, crypto.SHA256)
	b, err2 := uki.Digest(image, crypto.SHA256)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) || bytes.Equal(plain, image) {
		t.Errorf("digests %x and %x (%v)", a, b, err)
	}
	if strings.Contains(string(read(t, signed.Out, InfoFile)), signed.SecureBootKey) {
		t.Errorf("%s names the key's file", InfoFile)
	}
	c, err := Check(t.Context(), Options{SourceDir: o.SourceDir, Cache: o.Cache, Stub: o.Stub, Progress: io.Discard}, signed.Out)
	if err != nil || len(c.Differences) > 0 {
		t.Errorf("built again without the key: %+v, %v", c, err)
	}
	// The signature of another image is none of this one.
	image[len(image)/2] ^= 1
	write(t, filepath.Join(signed.Out, UKIFile), string(image))
	if c, err := Check(t.Context(), Options{SourceDir: o.SourceDir, Cache: o.Cache, Stub: o.Stub, Progress: io.Discard}, signed.Out); err == nil {
		t.Errorf("an image whose signature is not of it: %+v", c)
	}
}

// withDebian gives the test's cache what the user's has of Debian's programs, so that sbsign is fetched once.
func withDebian(t *testing.T, cache string) string {
	t.Helper()
	user, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	shared := filepath.Join(user, "ampoule", "debian")
	if err := errors.Join(os.MkdirAll(shared, 0o700), os.Symlink(shared, filepath.Join(cache, "debian"))); err != nil {
		t.Fatal(err)
	}
	return cache
}

func TestTheBillOfMaterialsHasEveryModule(t *testing.T) {
	info := sampleInfo()
	b, err := sbom(info)
	if err != nil {
		t.Fatal(err)
	}
	bom := new(cdx.BOM)
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(bom); err != nil {
		t.Fatal(err)
	}
	var urls []string
	refs := map[string]bool{bom.Metadata.Component.BOMRef: true}
	for _, c := range *bom.Components {
		urls = append(urls, c.PackageURL)
		refs[c.BOMRef] = true
	}
	for _, want := range []string{"pkg:deb/debian/linux-source-6.12@6.12.117-1~deb12u1?arch=amd64", "pkg:golang/a.example/b@v1.2.3", "pkg:golang/c.example/d@v4.5.6", "pkg:golang/std@1.26.8",
		"pkg:deb/debian/systemd-boot-efi@257.13-1~deb13u1?arch=amd64"} {
		if !slices.Contains(urls, want) {
			t.Errorf("no %s among %q", want, urls)
		}
	}
	for _, d := range *bom.Dependencies {
		for _, ref := range append(*d.Dependencies, d.Ref) {
			if !refs[ref] {
				t.Errorf("a dependency names %q, which is no component", ref)
			}
		}
	}
	if bom.SpecVersion != cdx.SpecVersion1_6 || !strings.HasPrefix(bom.SerialNumber, "urn:uuid:") || bom.Metadata.Timestamp != date.Format(time.RFC3339) {
		t.Errorf("version %v, serial number %q, time %q", bom.SpecVersion, bom.SerialNumber, bom.Metadata.Timestamp)
	}
}

func sampleInfo() *Info {
	return &Info{
		Profile: cmdline.Production, Cmdline: "a b", Source: strings.Repeat("5", 64), Stub: new(stubPin),
		Kernel: KernelInfo{Version: "6.12.117-ampoule", Package: "linux-source-6.12", PackageVersion: "6.12.117-1~deb12u1", SourceSHA256: strings.Repeat("1", 64), SHA256: strings.Repeat("2", 64)},
		Init: InitInfo{Go: "go1.26.8", SHA256: strings.Repeat("3", 64), Linked: []Module{{"a.example/b", "v1.2.3", "h1:r6RSZLFSMm6rzKepZ7ZAYkKCu14f3/Me8c7uKYh7C8c="}},
			Helpers: map[string]*InitInfo{"wasm": {SHA256: strings.Repeat("6", 64), Linked: []Module{{"c.example/d", "v4.5.6", ""}, {"a.example/b", "v1.2.3", "h1:r6RSZLFSMm6rzKepZ7ZAYkKCu14f3/Me8c7uKYh7C8c="}}}}},
		Files: []File{{KernelFile, strings.Repeat("2", 64), 1}, {UKIFile, strings.Repeat("4", 64), 2}},
	}
}

func TestTheProvenanceNamesAllThatEnters(t *testing.T) {
	info := sampleInfo()
	b, err := provenance(info)
	if err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" || len(s.Subject) != 2 || s.Subject[1].Digest["sha256"] != strings.Repeat("4", 64) {
		t.Errorf("statement %+v", s)
	}
	var digests []string
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
		for _, v := range d.Digest {
			digests = append(digests, v)
		}
	}
	for _, want := range []string{info.Source, info.Kernel.SourceSHA256, stubPin.SHA256, "afa45264b152326eabcca7a967b64062"} {
		if !slices.ContainsFunc(digests, func(d string) bool { return strings.HasPrefix(d, want) }) {
			t.Errorf("no dependency has digest %s: %q", want, digests)
		}
	}
}

// What is published is what the tool says of the same files by itself.
func TestMeasurementsAreThoseOfTheFiles(t *testing.T) {
	o := small(t)
	info := build(t, o)
	m, err := measure.ParseMeasurements(read(t, o.Out, MeasurementsFile))
	if err != nil {
		t.Fatal(err)
	}
	want := measure.Simulated(measure.Launch{Kernel: read(t, o.Out, KernelFile), Initrd: read(t, o.Out, InitramfsFile), Cmdline: info.Cmdline, VCPUs: 2})
	if !slices.Contains(m.Launch(), want) || len(m.Shapes) != 2 {
		t.Errorf("measurements %v, want %s among two", m.Launch(), want)
	}
	o.Shapes = []byte(`[{"name": "three", "tee": "simulated", "vmm": "qemu", "vcpus": 3}]`)
	build(t, o)
	if m, err = measure.ParseMeasurements(read(t, o.Out, MeasurementsFile)); err != nil || len(m.Shapes) != 1 || m.Shapes[0].Shape.Name != "three" {
		t.Errorf("with shapes of one's own: %+v, %v", m, err)
	}
	if c, err := Check(context.Background(), o, o.Out); err != nil || len(c.Differences) > 0 {
		t.Errorf("built again: %+v, %v", c, err)
	}
}

// What brokers take lies beside the image, is what the measurements say, and is part of what is built again.
func TestPolicyOfTheImage(t *testing.T) {
	o := small(t)
	holds := func(info *Info, p *keypolicy.Policy) {
		t.Helper()
		files, err := p.Files()
		if err != nil {
			t.Fatal(err)
		}
		have, err := filesBelow(o.Out, PolicyDir)
		if err != nil || len(have) != len(files) {
			t.Errorf("%q, %v, want %d files", have, err, len(files))
		}
		for name, b := range files {
			if f := info.File(PolicyDir + "/" + name); f != describe(f.Name, b) || !bytes.Equal(read(t, o.Out, f.Name), b) {
				t.Errorf("%s: %+v, want\n%s", name, f, b)
			}
		}
		if c, err := Check(context.Background(), o, o.Out); err != nil || len(c.Differences) > 0 {
			t.Errorf("built again: %+v, %v", c, err)
		}
	}
	measured := func() *measure.Measurements {
		t.Helper()
		m, err := measure.ParseMeasurements(read(t, o.Out, MeasurementsFile))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	plain := o
	o.Manifest = []byte(`{"version":1,"algorithm":{"uri":"docker://registry.example/fit@sha256:2222222222222222222222222222222222222222222222222222222222222222"}}`)
	o.Resources = []string{"default/key/*"}
	info := build(t, o)
	want, err := keypolicy.Make(measured(), keypolicy.Options{Manifests: [][32]byte{manifest.InitdataDigest(manifest.Wrap(o.Manifest))}, Resources: o.Resources})
	if err != nil {
		t.Fatal(err)
	}
	holds(info, want)

	o = plain
	info = build(t, o) // nothing of before is left
	if want, err = keypolicy.OfImage(measured()); err != nil {
		t.Fatal(err)
	}
	holds(info, want)

	// No evidence tells which image runs there.
	o.Out = t.TempDir()
	amazon := &measure.Measurements{Shapes: []measure.Prediction{{Kind: evidence.SNP, Shape: measure.Shape{Name: "amazon", VMM: measure.OnAWS}}}}
	if names, err := o.policy(amazon); err != nil || names != nil {
		t.Errorf("%q, %v, want nothing", names, err)
	}
	o.Resources = []string{"default/key/*"}
	if names, err := o.policy(amazon); !errors.Is(err, keypolicy.ErrNothing) {
		t.Errorf("%q, %v, want that there is nothing", names, err)
	}
}

func TestParseFormats(t *testing.T) {
	for in, want := range map[string][]string{"all": Formats, "none": nil, "raw,uki": {UKI, Raw}, "azure": {Azure}} {
		if got, err := ParseFormats(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "vmdk", "raw,", "all,raw"} {
		if got, err := ParseFormats(in); err == nil {
			t.Errorf("%q: %q, want an error", in, got)
		}
	}
}
