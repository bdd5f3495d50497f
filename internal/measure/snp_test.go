package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// amdSev and plainX64 are what edk2-stable202405 says of itself, built as AmdSevX64 and as OvmfPkgX64: the images of the
// tests of virtee/sev-snp-measure (8f2b337), whose values these are.
var (
	amdSev = &Firmware{
		resetEIP: 0x80b004, hashTable: 0x810c00, hashSize: 0x400,
		sev: []sevSection{
			{0x800000, 0x9000, sevSecMem}, {0x80a000, 0x3000, sevSecMem}, {0x80d000, 0x1000, sevSecrets}, {0x80e000, 0x1000, sevCPUID},
			{0x80f000, 0x1000, sevSVSMCAA}, {0x810000, 0x1000, sevKernelHashes}, {0x811000, 0xf000, sevSecMem},
		},
	}
	plainX64 = &Firmware{
		resetEIP: 0x80b004,
		sev: []sevSection{
			{0x800000, 0x9000, sevSecMem}, {0x80a000, 0x3000, sevSecMem}, {0x80d000, 0x1000, sevSecrets}, {0x80e000, 0x1000, sevCPUID},
			{0x80f000, 0x1000, sevSVSMCAA}, {0x810000, 0x10000, sevSecMem},
		},
	}
)

// What those images alone measure to: the SNP launch digest so far, and the state of SHA-256 behind their 4096 bytes.
const (
	amdSevPages = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
	amdSevState = "835de74bb394339355bb10f348ff3922eb9a4742b55f23c2e312f79c8c8bae48"
	plainState  = "9597608bd56f8b3f3e18950f142a6c183c2134afc1402d6fdfff6e89db3d3fca"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSNPIsAsPublished(t *testing.T) {
	epyc, err := CPUSignature("EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	empty := []byte{}
	for _, test := range []struct {
		name string
		l    SNPLaunch
		want string
	}{
		{"QEMU, an empty kernel, debug swap", SNPLaunch{Kernel: empty, VCPUs: 1, VMM: QEMU, Features: 0x21},
			"329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"},
		{"QEMU, an empty kernel", SNPLaunch{Kernel: empty, VCPUs: 1, VMM: QEMU, Features: 1},
			"ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"},
		{"QEMU, a command line, debug swap", SNPLaunch{Kernel: empty, Cmdline: "console=ttyS0 loglevel=7", VCPUs: 1, VMM: QEMU, Features: 0x21},
			"803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"},
		{"QEMU, a command line", SNPLaunch{Kernel: empty, Cmdline: "console=ttyS0 loglevel=7", VCPUs: 1, VMM: QEMU, Features: 1},
			"6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"},
		{"QEMU, four vCPUs, debug swap", SNPLaunch{Kernel: empty, VCPUs: 4, VMM: QEMU, Features: 0x21},
			"4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"},
		{"QEMU, four vCPUs", SNPLaunch{Kernel: empty, VCPUs: 4, VMM: QEMU, Features: 1},
			"5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"},
		{"QEMU, no kernel, debug swap", SNPLaunch{VCPUs: 1, VMM: QEMU, Features: 0x21},
			"e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"},
		{"QEMU, no kernel", SNPLaunch{VCPUs: 1, VMM: QEMU, Features: 1},
			"19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := snpDigest{ld: [48]byte(unhex(t, amdSevPages))}
			test.l.Firmware, test.l.Signature = amdSev, epyc
			got, err := d.launch(test.l)
			if err != nil || got.String() != test.want {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
		})
	}
}

// Those of EC2 and GCE were published for a launch that loads an empty kernel, which no cloud does; SNP refuses it, and
// the sum beneath it must not differ.
func TestSNPOfCloudsIsAsPublished(t *testing.T) {
	for _, test := range []struct {
		name string
		l    SNPLaunch
		want string
	}{
		{"EC2, debug swap", SNPLaunch{VCPUs: 1, VMM: EC2, Features: 0x21},
			"0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb"},
		{"EC2", SNPLaunch{VCPUs: 1, VMM: EC2, Features: 1},
			"0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056"},
		{"GCE", SNPLaunch{VCPUs: 1, VMM: GCE, Features: 1},
			"5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d5d0722e"},
		{"GCE, four vCPUs", SNPLaunch{VCPUs: 4, VMM: GCE, Features: 1},
			"5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := snpDigest{ld: [48]byte(unhex(t, amdSevPages))}
			test.l.Firmware, test.l.Kernel = amdSev, []byte{}
			got, err := d.launch(test.l)
			if err != nil || got.String() != test.want {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
		})
	}
}

// resumed is SHA-256 with 4096 bytes behind it.
func resumed(t *testing.T, state string) hash.Hash {
	t.Helper()
	h := sha256.New()
	b := append([]byte("sha\x03"), unhex(t, state)...)
	b = append(b, make([]byte, 64)...)
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(binary.BigEndian.AppendUint64(b, 4096)); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestSEVIsAsPublished(t *testing.T) {
	epyc, err := CPUSignature("EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	empty := []byte{}
	for _, test := range []struct {
		name  string
		mode  SEVMode
		state string
		l     SNPLaunch
		want  string
	}{
		{"SEV-ES", SEVES, amdSevState, SNPLaunch{Firmware: amdSev, Kernel: empty, VCPUs: 1}, "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c"},
		{"SEV-ES, four vCPUs", SEVES, amdSevState, SNPLaunch{Firmware: amdSev, Kernel: empty, VCPUs: 4}, "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91"},
		{"SEV, a command line", PlainSEV, amdSevState, SNPLaunch{Firmware: amdSev, Kernel: empty, Cmdline: "console=ttyS0 loglevel=7"},
			"82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff"},
		{"SEV, a kernel alone", PlainSEV, amdSevState, SNPLaunch{Firmware: amdSev, Kernel: empty}, "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898"},
		{"SEV, a firmware alone", PlainSEV, plainState, SNPLaunch{Firmware: plainX64}, "b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.l.VMM, test.l.Signature = QEMU, epyc
			h := resumed(t, test.state)
			if got, err := sev(test.mode, h, test.l); err != nil || hex.EncodeToString(got[:]) != test.want {
				t.Errorf("got %x, %v, want %s", got, err, test.want)
			}
		})
	}
}

// image is a firmware of two pages that says the same of itself as f.
func image(f *Firmware) []byte {
	var b []byte
	le := binary.LittleEndian
	entry := func(id uuid.UUID, data []byte) {
		b = append(b, data...)
		b = le.AppendUint16(b, uint16(len(data)+entryHeader))
		b = append(b, putGUID(id)...)
	}
	meta := append([]byte("ASEV"), make([]byte, 12)...)
	le.PutUint32(meta[4:], uint32(16+12*len(f.sev)))
	le.PutUint32(meta[8:], 1)
	le.PutUint32(meta[12:], uint32(len(f.sev)))
	for _, s := range f.sev {
		meta = le.AppendUint32(le.AppendUint32(le.AppendUint32(meta, s.gpa), s.size), s.kind)
	}
	tdvf := append([]byte("TDVF"), make([]byte, 12)...)
	le.PutUint32(tdvf[4:], uint32(16+32*len(f.tdvf)))
	le.PutUint32(tdvf[8:], 1)
	le.PutUint32(tdvf[12:], uint32(len(f.tdvf)))
	for _, s := range f.tdvf {
		tdvf = le.AppendUint32(le.AppendUint32(tdvf, s.offset), s.rawSize)
		tdvf = le.AppendUint64(le.AppendUint64(tdvf, s.gpa), s.size)
		tdvf = le.AppendUint32(le.AppendUint32(tdvf, s.kind), s.attributes)
	}
	const size = 2 * pageSize
	if len(f.sev) > 0 {
		entry(guidSEVMetadata, le.AppendUint32(nil, size-256))
	}
	if len(f.tdvf) > 0 {
		entry(guidTDXMetadata, le.AppendUint32(nil, size-1024))
	}
	entry(guidHashTable, le.AppendUint32(le.AppendUint32(nil, f.hashTable), f.hashSize))
	entry(guidResetBlock, le.AppendUint32(nil, f.resetEIP))
	b = le.AppendUint16(b, uint16(len(b)+entryHeader))
	b = append(b, putGUID(guidFooter)...)
	out := make([]byte, size)
	copy(out[256:], meta)
	copy(out[1024:], tdvf)
	copy(out[size-tableTail-len(b):], b)
	return out
}

func parsed(t *testing.T, f *Firmware) *Firmware {
	t.Helper()
	out, err := ParseFirmware(image(f))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSNPRefusesWhatItCannotKnow(t *testing.T) {
	good, plain := parsed(t, amdSev), parsed(t, plainX64)
	kernel := []byte("kernel")
	noReset, odd, sec := *amdSev, *amdSev, *amdSev
	noReset.resetEIP = 0
	odd.hashTable = 0x812c00
	sec.sev = append([]sevSection{{0x800000, 0x1000, 9}}, amdSev.sev...)
	bare := *amdSev
	bare.sev = nil
	for _, test := range []struct {
		name string
		l    SNPLaunch
		want string
	}{
		{"a kernel whose hash nobody measures", SNPLaunch{Firmware: plain, Kernel: kernel, VCPUs: 1, VMM: QEMU, Signature: 1}, "no table for kernel hashes"},
		{"an initrd without a kernel", SNPLaunch{Firmware: good, Initrd: kernel, VCPUs: 1, VMM: QEMU, Signature: 1}, "without a kernel"},
		{"a command line without a kernel", SNPLaunch{Firmware: good, Cmdline: "x", VCPUs: 1, VMM: QEMU, Signature: 1}, "without a kernel"},
		{"a kernel that a cloud is to load", SNPLaunch{Firmware: good, Kernel: kernel, VCPUs: 1, VMM: EC2}, "only QEMU boots one directly"},
		{"no CPU model", SNPLaunch{Firmware: good, VCPUs: 1, VMM: QEMU}, "the CPU model is missing"},
		{"no vCPU", SNPLaunch{Firmware: good, VMM: QEMU, Signature: 1}, "0 vCPUs"},
		{"an unknown VMM", SNPLaunch{Firmware: good, VCPUs: 1, VMM: "xen"}, `VMM "xen"`},
		{"two vCPUs and no word of where the second starts", SNPLaunch{Firmware: parsed(t, &noReset), VCPUs: 2, VMM: QEMU, Signature: 1}, "no SEV-ES reset block"},
		{"a table outside its page", SNPLaunch{Firmware: parsed(t, &odd), Kernel: kernel, VCPUs: 1, VMM: QEMU, Signature: 1}, "does not lie in its page"},
		{"a section of a type that is not known", SNPLaunch{Firmware: parsed(t, &sec), VCPUs: 1, VMM: QEMU, Signature: 1}, "is of type 0x9"},
		{"a firmware without SEV metadata", SNPLaunch{Firmware: parsed(t, &bare), VCPUs: 1, VMM: QEMU, Signature: 1}, "no SEV metadata"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if m, err := SNP(test.l); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %s, %v, want an error with %q", m, err, test.want)
			}
		})
	}
	if m, err := SEV(SEVES, SNPLaunch{Firmware: plain, Kernel: kernel, VCPUs: 1, VMM: QEMU, Signature: 1}); err == nil {
		t.Errorf("SEV-ES of a kernel whose hash nobody measures: %x", m)
	}
}

func TestSNPChangesWithEverything(t *testing.T) {
	base := SNPLaunch{Firmware: parsed(t, amdSev), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "quiet", VCPUs: 2, VMM: QEMU, Signature: 1, Features: 1}
	seen := map[evidence.Measurement]string{}
	for _, test := range []struct {
		name   string
		change func(*SNPLaunch)
	}{
		{"nothing", func(*SNPLaunch) {}},
		{"a byte of the kernel", func(l *SNPLaunch) { l.Kernel = []byte("kernem") }},
		{"a byte of the initrd", func(l *SNPLaunch) { l.Initrd = []byte("initre") }},
		{"a byte of the command line", func(l *SNPLaunch) { l.Cmdline = "quieu" }},
		{"a vCPU", func(l *SNPLaunch) { l.VCPUs++ }},
		{"the CPU model", func(l *SNPLaunch) { l.Signature++ }},
		{"a feature", func(l *SNPLaunch) { l.Features |= FeatureDebugSwap }},
		{"no kernel", func(l *SNPLaunch) { l.Kernel, l.Initrd, l.Cmdline = nil, nil, "" }},
		{"another firmware", func(l *SNPLaunch) {
			b := image(amdSev)
			b[0] ^= 1
			l.Firmware, _ = ParseFirmware(b)
		}},
	} {
		l := base
		test.change(&l)
		m, err := SNP(l)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[m]; ok {
			t.Errorf("a change of %s measures as one of %s", test.name, other)
		}
		seen[m] = test.name
	}
}

func TestCPUSignature(t *testing.T) {
	for name, want := range map[string]uint32{
		"EPYC": 0x800f12, "EPYC-v4": 0x800f12, "EPYC-IBPB": 0x800f12, "EPYC-Rome-v3": 0x830f10, "EPYC-Milan": 0xa00f11, "EPYC-Genoa-v2": 0xa10f10,
		"EPYC-Turin": 0xb00f00, "25/1/1": 0xa00f11, "6/15/11": 0x6fb,
	} {
		if got, err := CPUSignature(name); err != nil || got != want {
			t.Errorf("%s: %#x, %v, want %#x", name, got, err, want)
		}
	}
	for _, name := range []string{"", "EPYC-Naples", "host", "25/1", "25/1/16", "25/1/x", "EPYC-v", "-v1"} {
		if got, err := CPUSignature(name); err == nil {
			t.Errorf("%q: %#x", name, got)
		}
	}
}

// The block and the digests are those of sev-snp-measure's test_id_block.py, whose test keys these are.
func TestIDBlockIsAsPublished(t *testing.T) {
	id, err := ParseIDKey([]byte(testIDKey))
	if err != nil {
		t.Fatal(err)
	}
	author, err := ParseIDKey([]byte(testAuthorKey))
	if err != nil {
		t.Fatal(err)
	}
	m, err := base64.StdEncoding.DecodeString("B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t")
	if err != nil {
		t.Fatal(err)
	}
	b := IDBlock{Measurement: evidence.Measurement(m), Policy: DefaultPolicy}
	const want = "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7tAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA"
	if got := base64.StdEncoding.EncodeToString(b.Bytes()); got != want {
		t.Errorf("block %s, want %s", got, want)
	}
	auth, err := b.Sign(id, author)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		got  [48]byte
		want string
	}{
		"id key":     {auth.IDKeyDigest, "hwt+NcU/inLQ0yL3WrKvgmJ5Kq9leWIs5BMcPyHyied8sFYKXjuQs5MuZ07HCcsU"},
		"author key": {auth.AuthorDigest, "YxEcNLv8Ckk4+aAJvQdJgNgXIyPmFZnJ/TNtqGcySOHcqY0L6PdjdqEGuK/UwKBX"},
	} {
		if got := base64.StdEncoding.EncodeToString(test.got[:]); got != test.want {
			t.Errorf("digest of the %s %s, want %s", name, got, test.want)
		}
	}
	if err := auth.verify(b); err != nil {
		t.Error(err)
	}
	changed := b
	changed.Policy |= 1 << 19
	if err := auth.verify(changed); err == nil {
		t.Error("the signature is good for another policy")
	}
	alone, err := b.Sign(id, nil)
	if err != nil || alone.AuthorDigest != [48]byte{} || !bytes.Equal(alone.Auth[0x680:], make([]byte, idAuthSize-0x680)) {
		t.Errorf("without an author: %v", err)
	}
}
