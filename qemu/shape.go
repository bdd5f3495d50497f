package qemu

import (
	"fmt"
	"strconv"
	"strings"
)

// Accel is how guest instructions are executed.
type Accel string

const (
	KVM Accel = "kvm"
	TCG Accel = "tcg" // emulation: works everywhere, an order of magnitude slower
)

// A Shape is the virtual hardware.
type Shape struct {
	VCPUs     int
	MemoryMiB int
	Firmware  string // path of an OVMF image; "" is the SeaBIOS that QEMU brings
	Accel     Accel  // "" lets Run ask Probe
}

// Devices is what one launch plugs into a Shape. Paths may hold any character but NUL.
type Devices struct {
	Kernel, Initrd, Cmdline string
	Disk                    string // raw image to boot from by firmware, in place of the three
	Console                 string // file that takes the serial console
	VhostSocket             string // of a vhost-user-vsock back-end
	VhostFD                 int    // descriptor of /dev/vhost-vsock, inherited by QEMU; only where VhostSocket is ""
	CID                     uint64 // with VhostFD
	UserNet                 bool   // user-mode network, in which 10.0.2.2 is the host's loopback; without it there is no NIC
	Swap                    string // raw image of a disk that the guest may swap to; "" is none
	SwapDisk                string // what that disk is to be called there: vda, sda or nvme0n1
	Azure                   *Azure // nil: no TPM, and nothing answers as a cloud's metadata service
	TEE                     *TEE   // nil: not a confidential VM
}

// Azure is what surrounds a guest of a paravisor, for tests: a TPM, and the metadata service at 169.254.169.254. The
// network of the guest is then 169.254.169.0/24, in which AzureHost is the host's loopback.
type Azure struct {
	TPM  string // socket of a control channel as swtpm has it, on which somebody listens
	IMDS string // command that is started for each connection to the metadata service, which is its standard input and output
}

// AzureHost is the host's loopback to a guest that has an Azure around it.
const AzureHost = "169.254.169.2"

func (a *Azure) network() string {
	if a == nil {
		return ""
	}
	return ",net=169.254.169.0/24,host=" + AzureHost + ",guestfwd=tcp:169.254.169.254:80-cmd:" + quoteOption(a.IMDS)
}

// Args is QEMU's command line without the program. It is a pure function: what is measured and what can be reproduced
// depends on nothing else.
func (s Shape) Args(d Devices) []string {
	cpu := "max,-erms,-fsrm" // emulated, an instruction that moves or clears a string goes byte by byte
	accel := "tcg,thread=multi"
	if s.Accel == KVM {
		cpu, accel = "host", "kvm"
	}
	machine := "q35,memory-backend=mem0,vmport=off,hpet=off"
	var object []string
	if d.TEE != nil {
		o, more, model := d.TEE.object()
		object, machine, cpu = []string{"-object", o}, machine+more, model
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// vhost-user needs guest memory that another process can map.
		"-machine", machine,
		"-object", fmt.Sprintf("memory-backend-memfd,id=mem0,size=%dM,share=on", s.MemoryMiB),
		"-m", strconv.Itoa(s.MemoryMiB),
		"-accel", accel,
		"-cpu", cpu,
		"-smp", strconv.Itoa(s.VCPUs),
		"-chardev", "file,id=console,path=" + quoteOption(d.Console),
		"-serial", "chardev:console",
	}
	args = append(args, object...)
	if s.Firmware != "" {
		args = append(args, "-bios", s.Firmware)
	}
	if d.Disk != "" {
		args = append(args, "-drive", "if=none,id=boot,format=raw,readonly=on,file="+quoteOption(d.Disk), "-device", "virtio-blk-pci,drive=boot,bootindex=0")
	} else {
		args = append(args, "-kernel", d.Kernel, "-initrd", d.Initrd, "-append", d.Cmdline)
	}
	switch {
	case d.VhostSocket != "":
		args = append(args, "-chardev", "socket,id=vsock,path="+quoteOption(d.VhostSocket), "-device", "vhost-user-vsock-pci,chardev=vsock")
	case d.VhostFD != 0:
		args = append(args, "-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d,vhostfd=%d", d.CID, d.VhostFD))
	}
	if d.UserNet {
		// No option ROM: nothing boots from the network, and it would cost firmware time.
		args = append(args, "-netdev", "user,id=net0"+d.Azure.network(), "-device", "virtio-net-pci,netdev=net0,romfile=")
	}
	if d.Swap != "" {
		// Nothing on it outlives the VM, so that flushing it would be for nothing.
		args = append(args, "-drive", "if=none,id=swap,format=raw,cache=unsafe,file="+quoteOption(d.Swap))
		switch {
		case strings.HasPrefix(d.SwapDisk, "nvme"):
			args = append(args, "-device", "nvme,drive=swap,serial=swap")
		case strings.HasPrefix(d.SwapDisk, "sd"):
			args = append(args, "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=swap")
		default:
			args = append(args, "-device", "virtio-blk-pci,drive=swap")
		}
	}
	if d.Azure != nil {
		args = append(args, "-chardev", "socket,id=tpm,path="+quoteOption(d.Azure.TPM), "-tpmdev", "emulator,id=tpm0,chardev=tpm",
			"-device", "tpm-crb,tpmdev=tpm0")
	}
	return args
}

// LeastMemory is the smallest memory that a Shape takes, MiB. With 120 the smallest job succeeds still, under SeaBIOS and under OVMF, and with
// 116 it does not: what PID 1 keeps for itself leaves the workload too little (docs/PERFORMANCE.md).
const LeastMemory = 128

// check refuses what QEMU would refuse with less to say.
func (s Shape) check() error {
	switch {
	case s.VCPUs < 1 || s.VCPUs > 255:
		return fmt.Errorf("vCPUs: %d, want 1 to 255", s.VCPUs)
	case s.MemoryMiB < LeastMemory || s.MemoryMiB > 1<<20:
		return fmt.Errorf("memory: %d MiB, want %d to %d", s.MemoryMiB, LeastMemory, 1<<20)
	case s.Accel != "" && s.Accel != KVM && s.Accel != TCG:
		return fmt.Errorf("accelerator %q: want %s, %s or none", s.Accel, KVM, TCG)
	}
	return nil
}

// quoteOption writes a value into a comma-separated option.
func quoteOption(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// ShellCommand writes a command so that a POSIX shell runs it as it is.
func ShellCommand(name string, args []string) string {
	var b strings.Builder
	b.WriteString(quoteShell(name))
	for _, a := range args {
		b.WriteByte(' ')
		b.WriteString(quoteShell(a))
	}
	return b.String()
}

func quoteShell(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
