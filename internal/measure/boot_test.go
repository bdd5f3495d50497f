package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz/lzma"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// fixture reads real evidence of ../shared, where that is.
func fixture(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/wire/fixtures", name))
	if os.IsNotExist(err) {
		t.Skip("no fixtures of real hardware here (../shared)")
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A log of a real TDX guest that QEMU started directly, on OVMF of 2023: what is predicted for its kernel, command line and
// initrd leads to the RTMR1 and RTMR2 that the log leads to.
func TestRTMRsAreThoseOfARealLog(t *testing.T) {
	log, err := evidence.ParseEventLog(fixture(t, "ccel/trustee-CCEL_data_ovmf"))
	if err != nil {
		t.Fatal(err)
	}
	digest := func(mr int, kind uint32, data string) Digests {
		for _, e := range log {
			if e.MR == mr && e.Type == kind && bytes.Contains(e.Data, []byte(data)) {
				return Digests{SHA384: evidence.Measurement(e.Digest)}
			}
		}
		t.Fatalf("the log has no %q", data)
		return Digests{}
	}
	p := Prediction{Shape: Shape{TEE: OnTDX, VMM: OnQEMU}, Unpredicted: map[string]string{}}
	secure, err := behaviour{}.secureBoot()
	if err != nil {
		t.Fatal(err)
	}
	p.Events = append(secure, Event{4, evEFIBoot, "kernel", digest(2, evEFIBoot, "k\x00e\x00r\x00n\x00e\x00l")}, callingApplication, separator(4),
		Event{9, evEventTag, "", digest(3, evEventTag, "LoadOptions")}, Event{9, evEventTag, "", digest(3, evEventTag, "initrd")})
	p.rtmrs(nil, nil, Files{})
	real := evidence.Replay(log)
	if !slices.Contains(p.RTMR[1], real[1]) {
		t.Errorf("RTMR1 is %x, predicted was %v", real[1], p.RTMR[1])
	}
	if !slices.Contains(p.RTMR[2], real[2]) {
		t.Errorf("RTMR2 is %x, predicted was %v", real[2], p.RTMR[2])
	}
	// Its Secure Boot variables are those of a firmware without keys.
	for _, e := range secure {
		if !slices.ContainsFunc(log, func(l evidence.LogEvent) bool { return l.MR == 1 && evidence.Measurement(l.Digest) == e.Digests.SHA384 }) {
			t.Errorf("%s is not in the log", e.What)
		}
	}
}

// The GPT event of a real guest's log is EFI_GPT_DATA itself, of which a disk is made here.
func TestGPTEventIsThatOfARealLog(t *testing.T) {
	log, err := evidence.ParseEventLog(fixture(t, "ccel/ccel_data.dat"))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(log, func(e evidence.LogEvent) bool { return bytes.HasPrefix(e.Data, []byte("EFI PART")) })
	if at < 0 {
		t.Fatal("the log has no GPT")
	}
	data := log[at].Data
	disk := make([]byte, 64<<10)
	copy(disk[512:], data[:92])
	entries := int(binary.LittleEndian.Uint64(data[72:])) * 512
	copy(disk[entries+128:], data[100:]) // with an empty entry before them
	e, err := gptEvent(disk)
	if err != nil || e.Digests.SHA384 != evidence.Measurement(log[at].Digest) {
		t.Errorf("%s, %v, want %x", e.Digests.SHA384, err, log[at].Digest)
	}
	for name, disk := range map[string][]byte{"nothing": nil, "an MBR": make([]byte, 4096), "half a GPT": disk[:entries+128]} {
		if _, err := gptEvent(disk); err == nil {
			t.Errorf("a GPT was read out of %s", name)
		}
	}
}

// firmwareImage is an OVMF of ours that behaves as code says.
func firmwareImage(t *testing.T, f *Firmware, code string) []byte {
	t.Helper()
	var z bytes.Buffer
	w, err := lzma.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(code)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := image(f)
	section := append(append(putGUID(guidLZMA), 24, 0, 1, 0), z.Bytes()...)
	if len(section) > 1024 {
		t.Fatalf("%d bytes of code", len(section))
	}
	copy(b[2048:], section)
	return b
}

const oldCode, newCode = "\x00 initrd=initrd\x00", "\x00initrd=initrd \x00etc/boot/\x00"

var testTDVF = []tdvfSection{
	{offset: 4096, rawSize: 4096, gpa: fourGiB - 4096, size: 4096, kind: tdvfBFV, attributes: tdvfExtend},
	{offset: 0, rawSize: 4096, gpa: fourGiB - 8192, size: 4096, kind: tdvfCFV},
	{gpa: 0x809000, size: 8192, kind: tdvfHOB},
	{gpa: 0x810000, size: 4096, kind: tdvfTempMem, attributes: tdvfPageAug},
}

// linux is a kernel with the boot header that QEMU looks at.
func linux() []byte {
	b := makePE([2]string{".text", strings.Repeat("kernel", 1000)})
	copy(b[0x202:], "HdrS\x0f\x02")
	b[0x211] = 1
	b[0x236] = 2
	return b
}

func direct1() Files {
	return Files{Kernel: linux(), Initrd: []byte("initrd"), Cmdline: "console=ttyS0 quiet"}
}

// The kernel as QEMU before 10 leaves it, or as old firmware takes it, is another than that in the file.
func TestDirectBootDependsOnQEMUAndFirmware(t *testing.T) {
	both := *amdSev
	both.tdvf = testTDVF
	predict := func(code string, change func(*Shape, *Files)) (*Prediction, error) {
		s, f := Shape{Name: "vm", TEE: OnTPM, VMM: OnQEMU, Firmware: "fw", Memory: 512}, direct1()
		change(&s, &f)
		return Predict(s, f, firmwareImage(t, &both, code))
	}
	seen := map[Hash256]string{}
	for _, test := range []struct {
		name, code string
		change     func(*Shape, *Files)
	}{
		{"as in the file", newCode, func(*Shape, *Files) {}},
		{"QEMU 9", newCode, func(s *Shape, _ *Files) { s.QEMU = 9 }},
		{"QEMU 9, more memory", newCode, func(s *Shape, _ *Files) { s.QEMU, s.Memory = 9, 1024 }},
		{"QEMU 9, most memory", newCode, func(s *Shape, _ *Files) { s.QEMU, s.Memory = 9, 1<<20 }},
		{"QEMU 9, a larger initrd", newCode, func(s *Shape, f *Files) { s.QEMU, f.Initrd = 9, []byte("initrd and more") }},
		{"QEMU 9, no initrd", newCode, func(s *Shape, f *Files) { s.QEMU, f.Initrd = 9, nil }},
	} {
		p, err := predict(test.code, test.change)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if other, ok := seen[p.PCR[4].SHA256]; ok {
			t.Errorf("PCR 4 of %s is that of %s", test.name, other)
		}
		seen[p.PCR[4].SHA256] = test.name
	}
	old, err := predict(oldCode, func(*Shape, *Files) {})
	if err != nil || seen[old.PCR[4].SHA256] != "QEMU 9" {
		t.Errorf("old firmware does not take the kernel as QEMU left it: %v", err)
	}
	fresh, err := predict(newCode, func(*Shape, *Files) {})
	if err != nil || fresh.PCR[9] == old.PCR[9] {
		t.Errorf("where initrd= stands does not count: %v", err)
	}
	for name, test := range map[string]struct {
		code   string
		change func(*Shape, *Files)
	}{
		"no memory":                        {oldCode, func(s *Shape, _ *Files) { s.Memory = 0 }},
		"an initrd that does not fit":      {oldCode, func(s *Shape, f *Files) { s.Memory, f.Initrd = 1, make([]byte, 1<<20) }},
		"no Linux kernel":                  {oldCode, func(_ *Shape, f *Files) { f.Kernel = makePE([2]string{".text", strings.Repeat("x", 5000)}) }},
		"no PE image":                      {newCode, func(_ *Shape, f *Files) { f.Kernel = []byte("kernel") }},
		"a command line that is not ASCII": {newCode, func(_ *Shape, f *Files) { f.Cmdline = "a=é" }},
		"a firmware that both ways":        {oldCode + newCode, func(*Shape, *Files) {}},
		"a firmware that no way":           {"code", func(*Shape, *Files) {}},
	} {
		if p, err := predict(test.code, test.change); err == nil {
			t.Errorf("%s: predicted %v", name, p.PCR[4])
		}
	}
}

func TestUKIRefusesWhatItCannotKnow(t *testing.T) {
	good := sampleUKI("257.13-1~deb13u1")
	if _, err := ParseUKI(good); err != nil {
		t.Fatal(err)
	}
	larger := sampleUKI("257.13")
	at := bytes.Index(larger, []byte(".osrel"))
	binary.LittleEndian.PutUint32(larger[at+8:], 4096)
	for name, image := range map[string][]byte{
		"another version of the stub": sampleUKI("253.1"),
		"a later version":             sampleUKI("2570"),
		"no stub of systemd":          makePE([2]string{".linux", "x"}, [2]string{".cmdline", "x"}, [2]string{".initrd", "x"}),
		"no command line":             makePE([2]string{".sdmagic", "#### LoaderInfo: systemd-stub 257 ####"}, [2]string{".linux", "x"}, [2]string{".initrd", "x"}),
		"two command lines":           sampleUKI("257", [2]string{".cmdline", "other"}),
		"a profile":                   sampleUKI("257", [2]string{".profile", "ID=a"}),
		"a section that grows":        larger,
		"no PE image":                 []byte("MZ"),
		"half an image":               good[:len(good)/2],
	} {
		if _, err := ParseUKI(image); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestUKIChangesWithEverySection(t *testing.T) {
	pcrs := func(image []byte) map[int]Digests {
		p, err := Predict(Shape{Name: "vm", TEE: OnSNP, VMM: OnAzure}, Files{UKI: image}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p.PCR
	}
	base := pcrs(sampleUKI("257"))
	for _, text := range []string{"console=ttyS0 quiet", "archive", "kernel", "ID=ampoule"} {
		changed := pcrs(bytes.Replace(sampleUKI("257"), []byte(text), []byte(strings.ToUpper(text)), 1))
		if changed[4] == base[4] || changed[11] == base[11] {
			t.Errorf("%q is not measured", text)
		}
		if text == "console=ttyS0 quiet" && changed[9] == base[9] {
			t.Error("the command line is not in PCR 9")
		}
	}
}

// The order of adding and measuring is spelt out for two pages.
func TestMRTD(t *testing.T) {
	f, err := ParseFirmware(image(&Firmware{tdvf: testTDVF}))
	if err != nil {
		t.Fatal(err)
	}
	each, err := MRTD(f, EachPage)
	if err != nil {
		t.Fatal(err)
	}
	section, err := MRTD(f, EachSection)
	if err != nil {
		t.Fatal(err)
	}
	if each != section {
		t.Error("with one measured page the orders are the same, and differ")
	}
	two := slices.Clone(testTDVF)
	two[0].offset, two[0].rawSize, two[0].gpa, two[0].size = 0, 8192, fourGiB-8192, 8192
	two[1].gpa = 0x900000
	if f, err = ParseFirmware(image(&Firmware{tdvf: two})); err != nil {
		t.Fatal(err)
	}
	each, _ = MRTD(f, EachPage)
	section, _ = MRTD(f, EachSection)
	if each == section {
		t.Error("with two measured pages the orders are the same")
	}
	if m, err := MRTD(f, "backwards"); err == nil {
		t.Errorf("backwards: %s", m)
	}
	if m, err := MRTD(parsed(t, amdSev), EachPage); err == nil {
		t.Errorf("of a firmware without TDX metadata: %s", m)
	}
}

func TestPredictRefuses(t *testing.T) {
	fw := image(amdSev)
	for name, test := range map[string]struct {
		s        Shape
		f        Files
		firmware []byte
		want     string
	}{
		"no name":                       {Shape{TEE: OnSNP, VMM: OnAzure}, Files{UKI: sampleUKI("257")}, nil, "name"},
		"an unknown platform":           {Shape{Name: "vm", TEE: OnSNP, VMM: "xen"}, Files{}, nil, "vmm"},
		"TDX on AWS":                    {Shape{Name: "vm", TEE: OnTDX, VMM: OnAWS}, Files{}, nil, "tee"},
		"a direct boot in a cloud":      {Shape{Name: "vm", TEE: OnSNP, VMM: OnAzure, Boot: BootDirect}, Files{}, nil, "only QEMU"},
		"firmware of Azure":             {Shape{Name: "vm", TEE: OnSNP, VMM: OnAzure, Firmware: "fw"}, Files{UKI: sampleUKI("257")}, fw, "paravisor"},
		"QEMU without a firmware":       {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, CPU: "EPYC"}, direct1(), nil, "the first thing measured"},
		"a firmware that is not named":  {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, CPU: "EPYC"}, direct1(), fw, "no other"},
		"no UKI":                        {Shape{Name: "vm", TEE: OnSNP, VMM: OnAzure}, direct1(), nil, "boots a UKI"},
		"no kernel":                     {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, Firmware: "fw", CPU: "EPYC"}, Files{UKI: sampleUKI("257")}, fw, "boots a kernel"},
		"no CPU model":                  {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, Firmware: "fw"}, direct1(), fw, "CPU model"},
		"a firmware without TDX":        {Shape{Name: "vm", TEE: OnTDX, VMM: OnQEMU, Firmware: "fw"}, direct1(), fw, "no TDX metadata"},
		"a firmware without hash table": {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, Firmware: "fw", CPU: "EPYC"}, direct1(), image(plainX64), "kernel hashes"},
		"no firmware at all":            {Shape{Name: "vm", TEE: OnSNP, VMM: OnQEMU, Firmware: "fw", CPU: "EPYC"}, direct1(), make([]byte, 8192), "no OVMF image"},
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := Predict(test.s, test.f, test.firmware); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%+v, %v, want an error with %q", p, err, test.want)
			}
		})
	}
}

func TestPredictAll(t *testing.T) {
	both := *amdSev
	both.tdvf = testTDVF
	shapes := `[{"name": "genoa-2", "tee": "snp", "vmm": "qemu", "vcpus": 2, "cpu": "EPYC-Genoa", "firmware": "fw"},
		{"name": "tdx", "tee": "tdx", "vmm": "qemu", "firmware": "fw"}, {"name": "azure", "tee": "tdx", "vmm": "azure"},
		{"name": "gcp", "tee": "tdx", "vmm": "gcp"}, {"name": "here", "tee": "simulated", "vmm": "qemu"},
		{"name": "bad", "tee": "snp", "vmm": "qemu", "firmware": "fw"}]`
	list, err := ParseShapes([]byte(shapes))
	if err != nil {
		t.Fatal(err)
	}
	files := direct1()
	files.UKI, files.InitData = sampleUKI("257"), &[32]byte{7}
	read := func(string) ([]byte, error) { return firmwareImage(t, &both, newCode), nil }
	m, err := PredictAll(list, files, read)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Shapes) != 5 || !strings.Contains(m.Refused["bad"], "CPU model") {
		t.Errorf("%d shapes, refused %v", len(m.Shapes), m.Refused)
	}
	b, err := m.JSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseMeasurements(b)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := again.JSON(); err != nil || !bytes.Equal(b, c) {
		t.Errorf("read and written again it is another file: %v", err)
	}
	if got := len(m.Launch()); got != 3 { // SNP, MRTD, simulated: the orders are one for one page
		t.Errorf("%d launch measurements", got)
	}
	azure := m.Shapes[2]
	if want := evidence.InRegister(evidence.PCR8, files.InitData[:]); Hash256(want) != azure.PCR[8].SHA256 || azure.PCR[14] != azure.PCR[8] {
		t.Errorf("PCR 8 is %v, want %x", azure.PCR[8], want)
	}
	if azure.Unpredicted["measurements"] == "" || azure.Unpredicted["pcr.7"] == "" {
		t.Errorf("Azure leaves open %v", azure.Unpredicted)
	}
	if gcp := m.Shapes[3]; gcp.Identifies() == nil || !strings.Contains(gcp.Unpredicted["rtmr.1"], "GPT") {
		t.Errorf("GCP leaves open %v", gcp.Unpredicted)
	}
	for name, text := range map[string]string{"an unknown member": `[{"name": "a", "tee": "snp", "vmm": "azure", "colour": 1}]`, "no list": `{}`, "an empty list": `[]`, "more": `[] []`,
		"a bad shape": `[{"name": "a", "tee": "sgx", "vmm": "azure"}]`} {
		if _, err := ParseShapes([]byte(text)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := PredictAll(append(list, list[0]), files, read); err == nil {
		t.Error("two shapes of one name were taken")
	}
	if _, err := PredictAll(list[5:], files, read); err == nil {
		t.Error("nothing is predicted, and that is no error")
	}
	for _, text := range []string{`{"version": 2, "shapes": []}`, `{"version": 1, "shapes": [], "more": 1}`, `["` + strings.Repeat("00", 48) + `"]`} {
		if _, err := ParseMeasurements([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

// Evidence is held against one shape as a whole.
func TestMatch(t *testing.T) {
	m := evidence.Measurement{1}
	file := Measurements{Version: 1, Shapes: []Prediction{
		{Shape: Shape{Name: "snp", TEE: OnSNP, VMM: OnQEMU, Boot: BootDirect}, Kind: evidence.SNP, Measurements: []evidence.Measurement{m}},
		{Shape: Shape{Name: "gcp", TEE: OnSNP, VMM: OnGCP, Boot: BootUKI}, Kind: evidence.SNP, Measurements: []evidence.Measurement{{2}}},
		{Shape: Shape{Name: "tdx", TEE: OnTDX, VMM: OnQEMU}, Kind: evidence.TDX, Measurements: []evidence.Measurement{m}, RTMR: map[int][]evidence.Measurement{1: {{3}, {4}}, 2: {{5}}}},
		{Shape: Shape{Name: "azure", TEE: OnSNP, VMM: OnAzure}, Kind: evidence.AzSNPvTPM, PCR: map[int]Digests{4: {SHA256: Hash256{6}}, 9: {}, 11: {}, 12: {}}},
	}}
	rtmr := func(one, two byte) *[4][48]byte { return &[4][48]byte{1: {one}, 2: {two}} }
	for _, test := range []struct {
		name string
		o    Observed
		good bool
	}{
		{"SNP", Observed{Kind: evidence.SNP, Measurement: m}, true},
		{"SNP of another image", Observed{Kind: evidence.SNP, Measurement: evidence.Measurement{9}}, false},
		{"SNP of a cloud's firmware", Observed{Kind: evidence.SNP, Measurement: evidence.Measurement{2}}, false},
		{"TDX", Observed{Kind: evidence.TDX, Measurement: m, RTMR: rtmr(4, 5)}, true},
		{"TDX with another kernel", Observed{Kind: evidence.TDX, Measurement: m, RTMR: rtmr(9, 5)}, false},
		{"TDX with another initrd", Observed{Kind: evidence.TDX, Measurement: m, RTMR: rtmr(3, 9)}, false},
		{"TDX without RTMRs", Observed{Kind: evidence.TDX, Measurement: m}, false},
		{"Azure", Observed{Kind: evidence.AzSNPvTPM, PCR: &[24][32]byte{4: {6}}}, true},
		{"Azure with another UKI", Observed{Kind: evidence.AzSNPvTPM, PCR: &[24][32]byte{4: {7}}}, false},
		{"Azure with a command line from outside", Observed{Kind: evidence.AzSNPvTPM, PCR: &[24][32]byte{4: {6}, 12: {1}}}, false},
		{"Azure without PCRs", Observed{Kind: evidence.AzSNPvTPM}, false},
		{"a kind that no shape has", Observed{Kind: evidence.AzTDXvTPM, PCR: &[24][32]byte{4: {6}}}, false},
	} {
		if err := file.Match(test.o); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	b, err := json.Marshal(file)
	if err != nil || !bytes.Contains(b, []byte(`"pcr":{"11"`)) {
		t.Errorf("%s, %v", b, err)
	}
}
