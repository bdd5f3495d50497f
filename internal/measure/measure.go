// Package measure predicts the launch measurement of a VM from what it is launched with.
//
// It is a leaf for hosts: mkimage publishes what it says, qemu hands it to the simulated processor, verifiers compare.
package measure

import (
	"crypto/sha512"
	"encoding/binary"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Launch is everything that decides what a guest executes first.
type Launch struct {
	// Firmware holds the bytes of the firmware image. None stands for the firmware that is built into the hypervisor,
	// which is measured as that and not byte by byte: no host can name its bytes without asking that hypervisor, and
	// no processor can launch a confidential guest with it.
	Firmware []byte
	Kernel   []byte // the bzImage or UKI, as in the file
	Initrd   []byte
	Cmdline  string // what the host passes, before a firmware or loader adds to it
	VCPUs    int
}

const simulatedLabel = "ampoule simulated launch digest v1\x00"

// Simulated is the launch digest that the simulated processor reports. Hardware measures pages and registers instead,
// but the property is the same: no byte of the launch can change without changing it. It is the SHA-384 of
//
//	label     "ampoule simulated launch digest v1" and a zero byte (35 bytes)
//	firmware  be64 length, bytes; length 0 is the hypervisor's built-in firmware
//	kernel    be64 length, bytes
//	initrd    be64 length, bytes
//	cmdline   be64 length, bytes, no zero byte at the end
//	vcpus     be64 length (8), be64 number
func Simulated(l Launch) evidence.Measurement {
	h := sha512.New384()
	h.Write([]byte(simulatedLabel))
	vcpus := binary.BigEndian.AppendUint64(nil, uint64(l.VCPUs))
	for _, field := range [][]byte{l.Firmware, l.Kernel, l.Initrd, []byte(l.Cmdline), vcpus} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(field))))
		h.Write(field)
	}
	return evidence.Measurement(h.Sum(nil))
}
