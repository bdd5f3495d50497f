package qemu

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A TEE is what makes a VM a confidential one, on hardware that can. It takes KVM.
type TEE struct {
	Kind     evidence.Kind // evidence.SNP or evidence.TDX
	InitData [32]byte      // HOST_DATA; in MRCONFIGID, zeros follow it
	CPU      string        // CPU model; "": DefaultSNPCPU. TDX has the host's and no other

	// Of SNP: the identity block and its authentication, 96 and 4096 bytes, as ampoule measure signs them; both or neither.
	IDBlock, IDAuth []byte

	// Of TDX: where the host's quote generation service listens: unix:PATH or vsock:CID:PORT; "": DefaultQGS.
	QGS string
}

const (
	// DefaultSNPCPU is a model that all processors with SEV-SNP can play. Its signature is in each VMSA, so it is measured.
	DefaultSNPCPU = "EPYC-v4"

	// DefaultQGS is where Intel's service listens as it is installed.
	DefaultQGS = "unix:/var/run/tdx-qgs/qgs.socket"
)

// snpPolicy allows SMT, has the bit that must be one, and forbids debugging and migration.
const snpPolicy = 0x30000

// The encryption bit of a page table entry, and by how much it shortens addresses, on all processors with SEV-SNP.
const (
	snpCBit        = 51
	snpReducedBits = 1
)

// The sizes of what SNP_LAUNCH_FINISH takes, bytes (SEV-SNP firmware ABI, tables 67 and 68).
const (
	idBlockSize = 96
	idAuthSize  = 4096
)

// check refuses what QEMU or the firmware would refuse later and with less to say.
func (t *TEE) check(s Shape) error {
	switch {
	case t.Kind != evidence.SNP && t.Kind != evidence.TDX:
		return fmt.Errorf("TEE %q: want %s or %s", t.Kind, evidence.SNP, evidence.TDX)
	case s.Accel != KVM:
		return fmt.Errorf("TEE %s: takes KVM, and %s was chosen or is all that works here; ampoule doctor says what is missing", t.Kind, s.Accel)
	case s.Firmware == "":
		return fmt.Errorf("TEE %s: takes a firmware that knows it; name an OVMF image", t.Kind)
	case t.Kind == evidence.TDX && t.CPU != "" && t.CPU != "host":
		return fmt.Errorf("CPU %q: TDX has the host's model only", t.CPU)
	case t.Kind == evidence.TDX && len(t.IDBlock)+len(t.IDAuth) > 0:
		return fmt.Errorf("an identity block: TDX has none")
	case (t.IDBlock == nil) != (t.IDAuth == nil):
		return fmt.Errorf("an identity block and its authentication go together")
	case t.IDBlock != nil && (len(t.IDBlock) != idBlockSize || len(t.IDAuth) != idAuthSize):
		return fmt.Errorf("identity block of %d bytes, authentication of %d; want %d and %d", len(t.IDBlock), len(t.IDAuth), idBlockSize, idAuthSize)
	}
	if t.Kind == evidence.TDX {
		_, err := t.quoteSocket()
		return err
	}
	return nil
}

// teeID names the object that the machine refers to.
const teeID = "tee0"

// object is the value of -object; machine, what -machine has besides; cpu, the model.
func (t *TEE) object() (object, machine, cpu string) {
	machine = ",confidential-guest-support=" + teeID
	if t.Kind == evidence.TDX {
		// Its socket is an object within, which only JSON can say.
		socket, _ := t.quoteSocket() // checked
		o, err := json.Marshal(struct {
			Type       string            `json:"qom-type"`
			ID         string            `json:"id"`
			MRConfigID []byte            `json:"mrconfigid"`
			QGS        map[string]string `json:"quote-generation-socket"`
		}{"tdx-guest", teeID, append(t.InitData[:], make([]byte, 16)...), socket})
		if err != nil {
			panic(err) // strings
		}
		return string(o), machine + ",kernel-irqchip=split", "host"
	}
	cpu = t.CPU
	if cpu == "" {
		cpu = DefaultSNPCPU
	}
	// kernel-hashes has the firmware check kernel, initrd and command line against what is measured.
	object = fmt.Sprintf("sev-snp-guest,id=%s,cbitpos=%d,reduced-phys-bits=%d,policy=%#x,kernel-hashes=on,host-data=%s",
		teeID, snpCBit, snpReducedBits, snpPolicy, base64.StdEncoding.EncodeToString(t.InitData[:]))
	if t.IDBlock != nil {
		object += fmt.Sprintf(",id-block=%s,id-auth=%s", base64.StdEncoding.EncodeToString(t.IDBlock), base64.StdEncoding.EncodeToString(t.IDAuth))
	}
	return object, machine, cpu
}

// quoteSocket is QGS as QEMU's SocketAddress.
func (t *TEE) quoteSocket() (map[string]string, error) {
	where := t.QGS
	if where == "" {
		where = DefaultQGS
	}
	if path, ok := strings.CutPrefix(where, "unix:"); ok && path != "" {
		return map[string]string{"type": "unix", "path": path}, nil
	}
	if rest, ok := strings.CutPrefix(where, "vsock:"); ok {
		cid, port, ok := strings.Cut(rest, ":")
		_, err1 := strconv.ParseUint(cid, 10, 32)
		_, err2 := strconv.ParseUint(port, 10, 32)
		if ok && err1 == nil && err2 == nil {
			return map[string]string{"type": "vsock", "cid": cid, "port": port}, nil
		}
	}
	return nil, fmt.Errorf("quote generation service %q: want unix:PATH or vsock:CID:PORT", where)
}
