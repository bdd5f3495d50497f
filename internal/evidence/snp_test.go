package evidence

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shared reads a file of the shared wire folder, or skips where a checkout has none beside it.
func shared(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/wire", name))
	if os.IsNotExist(err) {
		t.Skipf("no shared vectors beside this checkout: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var reports = []struct {
	file     string
	version  uint32
	vmpl     uint32
	signer   Signer
	cpu      [3]uint8
	reported TCB
	firmware Firmware
}{
	{"snp-report-v3-genoa.bin", 3, 0, VCEK, [3]uint8{25, 160, 2}, TCB{Bootloader: 10, SNP: 23, Microcode: 25}, Firmware{1, 55, 40}},
	{"snp-report-trustee-vcek.bin", 2, 0, VCEK, [3]uint8{}, TCB{Bootloader: 3, SNP: 8, Microcode: 115}, Firmware{1, 52, 4}},
	{"snp-report-trustee-vlek.bin", 3, 1, VLEK, [3]uint8{25, 1, 1}, TCB{Bootloader: 4, SNP: 0x18, Microcode: 0xd9}, Firmware{1, 55, 29}},
	{"snp-report-go-sev-guest-milan.bin", 2, 0, VCEK, [3]uint8{}, TCB{Bootloader: 2, SNP: 5, Microcode: 68}, Firmware{1, 49, 3}},
}

func TestParseSNPReadsRealReports(t *testing.T) {
	for _, c := range reports {
		t.Run(c.file, func(t *testing.T) {
			raw := shared(t, "fixtures/snp/"+c.file)
			r, err := ParseSNP(raw)
			if err != nil {
				t.Fatal(err)
			}
			if r.Version != c.version || r.VMPL != c.vmpl || r.Signer() != c.signer || r.SigAlgo != 1 {
				t.Errorf("version %d vmpl %d signer %s algorithm %d", r.Version, r.VMPL, r.Signer(), r.SigAlgo)
			}
			if got := [3]uint8{r.CPUFamily, r.CPUModel, r.CPUStepping}; got != c.cpu {
				t.Errorf("cpu %v, want %v", got, c.cpu)
			}
			if r.ReportedTCB != c.reported || r.CurrentFirmware != c.firmware {
				t.Errorf("tcb %+v firmware %+v, want %+v %+v", r.ReportedTCB, r.CurrentFirmware, c.reported, c.firmware)
			}
			if !bytes.Equal(r.Measurement[:], raw[0x90:0xC0]) || !bytes.Equal(r.HostData[:], raw[0xC0:0xE0]) {
				t.Error("measurement or host data from the wrong place")
			}
			if !bytes.Equal(r.Marshal(), raw) {
				t.Error("Marshal gives other bytes")
			}
		})
	}
}

// report makes an unsigned report of the given version and CPU family, with every field different from zero.
func report(version uint32, family uint8) []byte {
	r := SNPReport{
		Version: version, GuestSVN: 1, Policy: 0x30000, VMPL: 0, SigAlgo: 1, PlatInfo: 3,
		CurrentTCB: TCB{0, 1, 2, 3, 4}, ReportedTCB: TCB{0, 1, 2, 3, 4}, CommittedTCB: TCB{0, 1, 2, 3, 4}, LaunchTCB: TCB{0, 1, 2, 3, 4},
		CurrentFirmware: Firmware{1, 55, 40}, CommittedFirmware: Firmware{1, 55, 39},
	}
	for i := range r.ChipID {
		r.ChipID[i] = byte(i)
	}
	r.SignatureR[71], r.SignatureS[0] = 1, 2
	if version >= 3 {
		r.CPUFamily, r.CPUModel, r.CPUStepping = family, 2, 1
	}
	if r.Turin() {
		for _, t := range []*TCB{&r.CurrentTCB, &r.ReportedTCB, &r.CommittedTCB, &r.LaunchTCB} {
			t.FMC = 9
		}
	}
	if version >= 5 {
		r.LaunchMitigationVector, r.CurrentMitigationVector = 1<<63|1, 7
	}
	return r.Marshal()
}

func TestLayoutsOfEveryVersionRoundTrip(t *testing.T) {
	for version := uint32(2); version <= 5; version++ {
		for _, family := range []uint8{0x19, 0x1A} {
			t.Run(fmt.Sprintf("version %d family %#x", version, family), func(t *testing.T) {
				raw := report(version, family)
				j, err := Evidence{Kind: SNP, Report: raw}.JSON()
				if err != nil {
					t.Fatal(err)
				}
				if has := bytes.Contains(j, []byte(`"fmc":9`)); has != (family == 0x1A && version >= 3) {
					t.Errorf("fmc is there: %t", has)
				}
				if has := bytes.Contains(j, []byte(`"launch_mit_vector":9223372036854775809`)); has != (version == 5) {
					t.Errorf("mitigation vector is there: %t", has)
				}
				ev, err := FromJSON(SNP, j)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(ev.Report, raw) {
					t.Error("other bytes")
				}
			})
		}
	}
	// Where Turin has its patch levels (wire/SPEC.md §2.1).
	if got, want := report(3, 0x1A)[0x180:0x188], []byte{9, 1, 2, 3, 0, 0, 0, 4}; !bytes.Equal(got, want) {
		t.Errorf("Turin TCB %v, want %v", got, want)
	}
	if got, want := report(3, 0x19)[0x180:0x188], []byte{1, 2, 0, 0, 0, 0, 3, 4}; !bytes.Equal(got, want) {
		t.Errorf("Genoa TCB %v, want %v", got, want)
	}
}

func TestParseSNPRefuses(t *testing.T) {
	change := func(off int, v byte) []byte {
		b := report(3, 0x19)
		b[off] = v
		return b
	}
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"an empty report":                  {nil, "0 bytes"},
		"a report and a byte":              {append(report(3, 0x19), 0), "1185 bytes"},
		"a version to come":                {change(0, 6), "version 6"},
		"a version long past":              {change(0, 1), "version 1"},
		"a reserved byte":                  {change(0x4C, 1), "0x4c"},
		"a reserved byte of a TCB":         {change(0x182, 1), "0x182"},
		"a mitigation vector in version 3": {change(0x1F8, 1), "0x1f8"},
		"a byte behind the signature":      {change(0x2A0+144, 1), "0x330"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseSNP(c.raw); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if _, err := (Evidence{Kind: SNP, Report: c.raw}).JSON(); err == nil {
				t.Error("JSON takes it")
			}
		})
	}
}

func FuzzParseSNP(f *testing.F) {
	for v := uint32(2); v <= 5; v++ {
		f.Add(report(v, 0x1A))
	}
	if b, err := os.ReadFile("../../../shared/wire/fixtures/snp/snp-report-v3-genoa.bin"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseSNP(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Marshal(), b) {
			t.Error("Marshal gives other bytes")
		}
		j, err := Evidence{Kind: SNP, Report: b}.JSON()
		if err != nil {
			t.Fatal(err)
		}
		ev, err := FromJSON(SNP, j)
		if err != nil || !bytes.Equal(ev.Report, b) {
			t.Errorf("JSON does not come back: %v", err)
		}
	})
}
