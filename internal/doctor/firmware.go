package doctor

import (
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/measure"
)

// Firmware looks at an OVMF image. want is the TEE that it is for; "" asks for either.
func Firmware(r *Report, image []byte, want evidence.Kind) {
	f, err := measure.ParseFirmware(image)
	if err != nil {
		r.add("firmware", "format", Bad, "name an OVMF image, as OVMF.fd", "%v", err)
		return
	}
	r.add("firmware", "format", OK, "", "an OVMF image of %d KiB", len(image)>>10)
	if f.SNP() {
		r.add("firmware", "SEV-SNP", OK, "", "it names the pages that an SNP guest needs")
	} else {
		r.add("firmware", "SEV-SNP", missing(want == evidence.SNP), "use OVMF.amdsev.fd of Debian's ovmf-amdsev", "it names no pages for an SNP guest")
	}
	switch {
	case f.KernelHashes():
		r.add("firmware", "kernel hashes", OK, "", "it checks kernel, initramfs and command line against what is measured")
	case f.SNP():
		r.add("firmware", "kernel hashes", missing(want == evidence.SNP), "use OVMF.amdsev.fd of Debian's ovmf-amdsev, or boot a UKI from a disk and check its PCRs", "it has no table for them")
		r.risk("with this firmware a direct boot on SEV-SNP measures neither initramfs nor command line: whoever has the host could boot another /init")
	}
	if err := f.TDX(); err != nil {
		r.add("firmware", "TDX", missing(want == evidence.TDX), "use OVMF.inteltdx.ms.fd of Debian's ovmf-inteltdx", "%v", err)
	} else {
		r.add("firmware", "TDX", OK, "", "it has the metadata of a TDX firmware")
	}
}
