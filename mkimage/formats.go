package mkimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ampoule-vm/ampoule/internal/disk"
	"github.com/ampoule-vm/ampoule/internal/uki"
)

// What an image is also written as. Every format but UKI is a disk with it on an EFI system partition.
const (
	UKI           = "uki"           // UKIFile: one PE file
	Raw           = "raw"           // RawFile: QEMU, Amazon
	GCP           = "gcp"           // GCPFile: Google
	Azure         = "azure"         // AzureFile
	QCOW2         = "qcow2"         // QCOW2File: QEMU, libvirt, OpenStack, Alibaba
	ContainerDisk = "containerdisk" // ContainerDiskDir: KubeVirt
)

// Formats are all of them, in the order in which they are made.
var Formats = []string{UKI, Raw, GCP, Azure, QCOW2, ContainerDisk}

// The files of the formats.
const (
	UKIFile          = "ampoule.efi"
	RawFile          = "disk.raw"
	GCPFile          = "disk.tar.gz"
	AzureFile        = "disk.vhd"
	QCOW2File        = "disk.qcow2"
	ContainerDiskDir = "containerdisk" // an OCI layout
)

// bootPath is what firmware starts from a disk for which it has no boot entry (UEFI 2.10, 3.5.1.1).
const bootPath = "EFI/BOOT/BOOTX64.EFI"

// gcpSize is the size of Google's image, which counts whole GiB.
const gcpSize = disk.GiB

// ParseFormats reads "all", "none" or a comma-separated list of formats.
func ParseFormats(s string) ([]string, error) {
	switch s {
	case "all":
		return slices.Clone(Formats), nil
	case "none":
		return nil, nil
	}
	var out []string
	for _, f := range Formats { // their order is ours
		if slices.Contains(strings.Split(s, ","), f) {
			out = append(out, f)
		}
	}
	for f := range strings.SplitSeq(s, ",") {
		if !slices.Contains(Formats, f) {
			return nil, fmt.Errorf("%q is not a format; want all, none, or some of %s", f, strings.Join(Formats, ","))
		}
	}
	return out, nil
}

// osRelease names the system to whoever lists images (os-release(5)).
func osRelease(profile, kernel string) []byte {
	return fmt.Appendf(nil, "ID=ampoule\nNAME=Ampoule\nPRETTY_NAME=\"Ampoule (%s, Linux %s)\"\nVARIANT_ID=%s\n", profile, kernel, profile)
}

// unify makes the UKI, unsigned. Its initramfs has the command line as well, by which init knows whether the machine was
// started with it: firmware lets its owner start a UKI with another, and systemd-stub takes that where neither Secure Boot
// nor a confidential VM forbid it.
func unify(stub []byte, profile, line string, k KernelInfo, kernel, initramfs []byte) ([]byte, error) {
	expected, err := cpioOf(file{LineName, []byte(line), 0o444})
	if err != nil {
		return nil, err
	}
	return uki.Build(stub, []uki.Section{
		{Name: uki.OSRelease, Data: osRelease(profile, k.Version)},
		{Name: uki.Cmdline, Data: []byte(line)},
		{Name: uki.Uname, Data: []byte(k.Version)},
		{Name: uki.Linux, Data: kernel},
		{Name: uki.Initrd, Data: slices.Concat(expected, initramfs)},
	})
}

// identity is what the GUIDs of a disk come from: the same with a signature and without, for they are measured.
func identity(image []byte) (id [32]byte, err error) {
	digest, err := uki.Digest(image, crypto.SHA256)
	copy(id[:], digest)
	return id, err
}

// diskOf is a disk of so many bytes, or of the fewest for 0, whose names come from what is on it.
func diskOf(image []byte, size int64) (*disk.Image, error) {
	id, err := identity(image)
	if err != nil {
		return nil, err
	}
	esp, err := disk.FAT32([]disk.File{{Name: bootPath, Data: image}}, id, date)
	if err != nil {
		return nil, err
	}
	return disk.GPT(esp, size, id)
}

// disks writes the formats that are disks, and returns the names of the files.
func (o Options) disks(image []byte) ([]string, error) {
	id, err := identity(image)
	if err != nil {
		return nil, err
	}
	small, err := diskOf(image, 0)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range o.Formats {
		var err error
		name := ""
		switch f {
		case Raw:
			name = RawFile
			err = small.WriteFile(filepath.Join(o.Out, name))
		case GCP:
			name = GCPFile
			var large *disk.Image
			if large, err = diskOf(image, gcpSize); err == nil { // its second table is at its own end
				err = large.WriteGCE(filepath.Join(o.Out, name), date)
			}
		case Azure:
			name = AzureFile
			err = small.WriteVHD(filepath.Join(o.Out, name), id, date)
		case QCOW2:
			name = QCOW2File
			err = small.WriteQCOW2(filepath.Join(o.Out, name))
		case ContainerDisk:
			var blobs []string
			if blobs, err = o.containerDisk(small); err == nil {
				names = append(names, blobs...)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// containerDisk writes an OCI layout of one image with the disk in it, as KubeVirt takes it: a file below /disk that
// belongs to user 107, qemu.
func (o Options) containerDisk(i *disk.Image) ([]string, error) {
	tmp, err := os.MkdirTemp(o.Out, ".containerdisk-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, QCOW2File)
	if err := i.WriteQCOW2(path); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	archive, err := diskLayer(b)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		mutate.Addendum{Layer: layer, MediaType: types.OCILayer, History: v1.History{CreatedBy: "ampoule build", Created: v1.Time{Time: date}}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS, config.Created = "amd64", "linux", v1.Time{Time: date}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.Out, ContainerDiskDir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, err
	}
	if err := l.AppendImage(image, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		return nil, err
	}
	return filesBelow(o.Out, ContainerDiskDir)
}

func diskLayer(b []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "disk/", Mode: 0o555},
		{Typeflag: tar.TypeReg, Name: "disk/" + QCOW2File, Mode: 0o440, Size: int64(len(b))},
	} {
		h.Uid, h.Gid, h.ModTime, h.Format = 107, 107, date, tar.FormatUSTAR
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	err := w.Close()
	return buf.Bytes(), err
}

// filesBelow lists the regular files below dir of root, sorted, relative to root and with slashes.
func filesBelow(root, dir string) (names []string, err error) {
	err = filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, err := filepath.Rel(root, path)
			names = append(names, filepath.ToSlash(rel))
			return err
		}
		return err
	})
	return names, err
}

// discard removes what an earlier build left in o.Out, so that no file of another image stays beside this one.
func (o Options) discard() error {
	for _, name := range []string{InfoFile, UKIFile, RawFile, GCPFile, AzureFile, QCOW2File, ContainerDiskDir, ManifestFile,
		ShapesFile, MeasurementsFile, PolicyDir, SBOMFile, ProvenanceFile, SumsFile} {
		if err := os.RemoveAll(filepath.Join(o.Out, name)); err != nil {
			return err
		}
	}
	return nil
}

// unified makes the UKI, signs it if a key is given, and writes it and the disks.
func (o Options) unified(ctx context.Context, info *Info, kernel, initramfs []byte) ([]string, error) {
	stub, stubInfo, err := o.stub(ctx)
	if err != nil {
		return nil, err
	}
	image, err := unify(stub, o.Profile, info.Cmdline, info.Kernel, kernel, initramfs)
	if err != nil {
		return nil, err
	}
	info.Stub = stubInfo
	if image, err = o.sign(ctx, image, info); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(o.Out, UKIFile), image); err != nil {
		return nil, err
	}
	disks, err := o.disks(image)
	return append([]string{UKIFile}, disks...), err
}
