package configfs

import (
	"errors"
	"fmt"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// maxAux bounds the certificate table, bytes; three certificates are 5 KiB.
const maxAux = 64 << 10

// snp is AMD SEV-SNP at VMPL 0.
var snp = format{kind: evidence.SNP, provider: "sev_guest", level: &report.Privilege{Level: 0}, aux: true, check: checkSNP}

// SNP opens an AMD SEV-SNP guest device.
var SNP = driver(snp, func(d *device) tee.Device { return d })

// New opens the SNP device behind client.
func New(client configfsi.Client) (tee.Device, error) {
	d, err := open(client, snp)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func checkSNP(resp *report.Response, reportData [64]byte) (evidence.Evidence, error) {
	r, err := evidence.ParseSNP(resp.OutBlob)
	if err != nil {
		return evidence.Evidence{}, err
	}
	if r.ReportData != reportData {
		return evidence.Evidence{}, errors.New("SNP report: it carries other report data than was asked for")
	}
	if r.VMPL != 0 {
		return evidence.Evidence{}, fmt.Errorf("SNP report: VMPL %d, want 0: below VMPL 0 runs another program (an SVSM or a paravisor) "+
			"that this evidence says nothing of, and key brokers refuse it; launch without it", r.VMPL)
	}
	if n := len(resp.AuxBlob); n > maxAux {
		return evidence.Evidence{}, fmt.Errorf("SNP certificate table: %d bytes, limit %d", n, maxAux)
	}
	return evidence.Evidence{Kind: evidence.SNP, Report: resp.OutBlob, Aux: resp.AuxBlob}, nil
}
