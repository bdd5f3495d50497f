package evidence

import "bytes"

const snpReportedTCB = 0x180 // in an SNP report, 8 bytes

// TCB is the patch level of the platform as it stands in the report: REPORTED_TCB of SNP, 8 bytes, or TEE_TCB_SVN of TDX,
// 16 bytes; on Azure, of the hardware below the paravisor. It is nil for evidence that has none, or cannot be read.
// Nothing is verified.
func (e Evidence) TCB() []byte {
	report := e.Report
	switch e.Kind {
	case AzSNPvTPM:
		h, err := ParseHCL(report)
		if err != nil {
			return nil
		}
		report = h.Hardware
		fallthrough
	case SNP:
		if len(report) < snpReportedTCB+8 {
			return nil
		}
		return bytes.Clone(report[snpReportedTCB:][:8])
	case AzTDXvTPM:
		report = e.Aux
		fallthrough
	case TDX:
		q, err := ParseTDX(report)
		if err != nil {
			return nil
		}
		return q.Report.TEETCBSVN[:]
	}
	return nil
}

// Whole cuts off what is behind a quote and no part of it: quoting services pad, with zeros or with what was in their buffer,
// and nobody signs that.
func (e Evidence) Whole() Evidence {
	quote := &e.Report
	switch e.Kind {
	case TDX:
	case AzTDXvTPM:
		quote = &e.Aux
	default:
		return e
	}
	if q, err := ParseTDX(*quote); err == nil {
		*quote = (*quote)[:len(q.Signed)+4+len(q.Auth)]
	}
	return e
}
