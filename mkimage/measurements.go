package mkimage

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/disk"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
)

// ShapesFile has the VMs that were asked for; absent where they are those of defaultShapes.
const ShapesFile = "shapes.json"

const maxFirmware = 64 << 20

// defaultShapes are the VMs that an image is measured for without being told: those whose firmware nobody has to give.
func (o Options) defaultShapes() []measure.Shape {
	if o.simulation() {
		return []measure.Shape{
			{Name: "simulated-1", TEE: measure.OnSimulated, VMM: measure.OnQEMU, VCPUs: 1},
			{Name: "simulated-2", TEE: measure.OnSimulated, VMM: measure.OnQEMU, VCPUs: 2},
		}
	}
	if len(o.Formats) == 0 {
		return nil
	}
	return []measure.Shape{
		{Name: "azure-snp", TEE: measure.OnSNP, VMM: measure.OnAzure},
		{Name: "azure-tdx", TEE: measure.OnTDX, VMM: measure.OnAzure},
		{Name: "gcp-snp", TEE: measure.OnSNP, VMM: measure.OnGCP},
		{Name: "gcp-tdx", TEE: measure.OnTDX, VMM: measure.OnGCP},
		{Name: "aws-snp", TEE: measure.OnSNP, VMM: measure.OnAWS},
	}
}

// measurements says what the files in o.Out will measure to, what brokers then need, and returns the names of what it wrote.
func (o Options) measurements(info *Info) (names []string, err error) {
	shapes := o.defaultShapes()
	if o.Shapes != nil {
		if shapes, err = measure.ParseShapes(o.Shapes); err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(o.Out, ShapesFile), o.Shapes); err != nil {
			return nil, err
		}
		names = append(names, ShapesFile)
	}
	if len(shapes) == 0 {
		if o.Resources != nil {
			return nil, errors.New("no policy for resources without measurements: name the VMs with --shapes")
		}
		fmt.Fprintln(o.Progress, "build: nothing is predicted: a kernel that is started directly is measured with its firmware; name the VMs with --shapes")
		return nil, nil
	}
	files, err := o.measured(info)
	if err != nil {
		return nil, err
	}
	all := &measure.Measurements{}
	var problems []error
	// Google's disk is another than the rest's, and its partition table is measured.
	for _, size := range []int64{gcpSize, 0} {
		var some []measure.Shape
		for _, s := range shapes {
			if (s.VMM == measure.OnGCP) == (size == gcpSize) {
				some = append(some, s)
			}
		}
		if len(some) == 0 {
			continue
		}
		if files.UKI != nil {
			if files.Disk, err = tableOf(files.UKI, size); err != nil {
				return nil, err
			}
		}
		m, err := measure.PredictAll(some, files, o.firmware)
		if m == nil {
			return nil, err
		}
		if err != nil {
			problems = append(problems, err)
		}
		m.Shapes = append(all.Shapes, m.Shapes...)
		if all.Refused != nil {
			maps.Copy(m.Refused, all.Refused)
		}
		all = m
	}
	if len(all.Shapes) == 0 {
		return nil, errors.Join(problems...)
	}
	for name, why := range all.Refused {
		fmt.Fprintf(o.Progress, "build: nothing is predicted for %s: %s\n", name, why)
	}
	b, err := all.JSON()
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(o.Out, MeasurementsFile), b); err != nil {
		return nil, err
	}
	policy, err := o.policy(all)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return slices.Concat(names, []string{MeasurementsFile}, policy), nil
}

// measured are the files that machines measure.
func (o Options) measured(info *Info) (f measure.Files, err error) {
	f.Cmdline = info.Cmdline
	for _, part := range []struct {
		name string
		dst  *[]byte
	}{{KernelFile, &f.Kernel}, {InitramfsFile, &f.Initrd}, {UKIFile, &f.UKI}} {
		if info.File(part.name) == (File{}) {
			continue
		}
		if *part.dst, err = os.ReadFile(filepath.Join(o.Out, part.name)); err != nil {
			return f, err
		}
	}
	if o.Manifest != nil {
		digest := manifest.InitdataDigest(manifest.Wrap(o.Manifest))
		f.InitData = &digest
	}
	return f, nil
}

// tableOf is the beginning, with the partition table, of the disk that has the UKI.
func tableOf(image []byte, size int64) ([]byte, error) {
	d, err := diskOf(image, size)
	if err != nil {
		return nil, err
	}
	b := make([]byte, disk.MiB)
	_, err = d.ReadAt(b, 0)
	return b, err
}

// firmware reads the file that a shape names, seen from the folder of the shapes.
func (o Options) firmware(name string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(o.ShapesDir, name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFirmware+1))
	if err == nil && len(b) > maxFirmware {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFirmware)
	}
	return b, err
}
