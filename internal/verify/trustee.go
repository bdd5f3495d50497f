package verify

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Trustee gives the claims by the names and in the forms under which Trustee v0.21 puts them into a token, as
// ear.veraison.annotated-evidence, so that policies written for it can be held against them: one member named after the
// kind, report_data, and init_data for a kind with a register. What Trustee adds of the request itself is not in there, nor
// are the details that it reads out of single events of a log.
func (c *Claims) Trustee() map[string]any {
	out := map[string]any{}
	var tee map[string]any
	switch c.Kind {
	case evidence.SNP:
		tee = snpAnnotated(c.SNP)
		out["report_data"], out["init_data"] = hex.EncodeToString(c.ReportData[:]), hex.EncodeToString(c.HostData[:])
	case evidence.AzSNPvTPM:
		tee = texts(snpAnnotated(c.SNP))
		tee["measurement"] = base64.StdEncoding.EncodeToString(c.Measurement[:])
		delete(tee, "chip_id")
	case evidence.TDX, evidence.AzTDXvTPM:
		tee = c.tdxAnnotated()
		// Trustee looks at no RTMR for initdata.
		out["report_data"], out["init_data"] = hex.EncodeToString(c.ReportData[:]), hex.EncodeToString(c.TDX.MRConfigID[:])
	case evidence.Sample:
		// All but the first are Trustee's own constants, which its stock policy looks at.
		tee = map[string]any{
			"svn": "1", "launch_digest": "abcde", "debug": false, "platform_version": map[string]any{"major": 1, "minor": 4},
		}
		out["report_data"] = base64.StdEncoding.EncodeToString(c.ReportData[:reportDataSize(c.Kind)])
	}
	if c.PCRs != nil {
		tpm := map[string]any{}
		for i, pcr := range c.PCRs {
			tpm[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(pcr[:])
		}
		tee["tpm"] = tpm
		out["report_data"], out["init_data"] = hex.EncodeToString(c.nonce), hex.EncodeToString(c.PCRs[8][:])
	}
	out[string(c.Kind)] = tee
	return out
}

// Bits of SNPReport.Policy and SNPReport.PlatInfo that only claims name.
const (
	policySMT          = 1 << 16
	policySingleSocket = 1 << 20
	platformSMT        = 1 << 0
	platformTSME       = 1 << 1
)

func snpAnnotated(r *evidence.SNPReport) map[string]any {
	return map[string]any{
		"policy_abi_major":        r.Policy >> 8 & 0xff,
		"policy_abi_minor":        r.Policy & 0xff,
		"policy_smt_allowed":      r.Policy&policySMT != 0,
		"policy_migrate_ma":       r.Policy&evidence.SNPPolicyMigrateMA != 0,
		"policy_debug_allowed":    r.Policy&evidence.SNPPolicyDebug != 0,
		"policy_single_socket":    r.Policy&policySingleSocket != 0,
		"reported_tcb_bootloader": r.ReportedTCB.Bootloader,
		"reported_tcb_tee":        r.ReportedTCB.TEE,
		"reported_tcb_snp":        r.ReportedTCB.SNP,
		"reported_tcb_microcode":  r.ReportedTCB.Microcode,
		"platform_tsme_enabled":   r.PlatInfo&platformTSME != 0,
		"platform_smt_enabled":    r.PlatInfo&platformSMT != 0,
		"measurement":             r.Measurement.String(),
		"chip_id":                 hex.EncodeToString(r.ChipID[:]),
	}
}

// texts writes every claim as a string: so Trustee does for Azure.
func texts(m map[string]any) map[string]any {
	for name, v := range m {
		m[name] = fmt.Sprint(v)
	}
	return m
}

func (c *Claims) tdxAnnotated() map[string]any {
	r := c.TDX
	word := func(v uint64) string { return hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, v)) }
	body := map[string]any{
		"tcb_svn":         hex.EncodeToString(r.TEETCBSVN[:]),
		"mr_seam":         hex.EncodeToString(r.MRSeam[:]),
		"mrsigner_seam":   hex.EncodeToString(r.MRSignerSeam[:]),
		"seam_attributes": word(r.SeamAttributes),
		"td_attributes":   word(r.Attributes),
		"xfam":            word(r.XFAM),
		"mr_td":           hex.EncodeToString(r.MRTD[:]),
		"mr_config_id":    hex.EncodeToString(r.MRConfigID[:]),
		"mr_owner":        hex.EncodeToString(r.MROwner[:]),
		"mr_owner_config": hex.EncodeToString(r.MROwnerConfig[:]),
		"report_data":     hex.EncodeToString(r.ReportData[:]),
	}
	for i, rtmr := range r.RTMR {
		body[fmt.Sprintf("rtmr_%d", i)] = hex.EncodeToString(rtmr[:])
	}
	h, part := c.header, func(from, to int) string { return hex.EncodeToString(c.header[from:to]) }
	quote := map[string]any{"body": body, "header": map[string]any{
		"version": part(0, 2), "att_key_type": part(2, 4), "tee_type": part(4, 8), "reserved": part(8, 12),
		"vendor_id": part(12, 28), "user_data": part(28, 48),
	}}
	if len(h) > 48 {
		quote["type"], quote["size"] = part(48, 50), part(50, 54)
		if h[48] == 3 {
			body["tee_tcb_svn2"], body["mr_servicetd"] = hex.EncodeToString(r.TEETCBSVN2[:]), hex.EncodeToString(r.MRServiceTD[:])
		}
	}
	bit := func(n int) bool { return r.Attributes>>n&1 == 1 }
	tee := map[string]any{
		"quote": quote,
		"td_attributes": map[string]any{
			"debug": bit(0), "septve_disable": bit(28), "protection_keys": bit(30), "key_locker": bit(31), "perfmon": bit(63),
		},
	}
	if c.instance != nil {
		id := slices.Clone(c.instance)
		slices.Reverse(id) // the certificate has it in the other order
		tee["platform_instance_id"] = hex.EncodeToString(id)
	}
	if c.events != nil {
		tee["uefi_event_logs"] = eventsAnnotated(c.events)
	}
	if c.TCBStatus != "" {
		tee["tcb_status"], tee["tcb_date"], tee["advisory_ids"] = c.TCBStatus, c.TCBDate, c.Advisory
		tee["collateral_expiration_status"] = "0" // expired collateral is refused
	}
	return tee
}

// eventNames are those of the TCG PC Client Platform Firmware Profile, §10.4.1, that firmware and boot loaders write.
var eventNames = map[uint32]string{
	0x1: "EV_POST_CODE", 0x3: "EV_NO_ACTION", 0x4: "EV_SEPARATOR", 0x5: "EV_ACTION", 0x6: "EV_EVENT_TAG", 0x7: "EV_S_CRTM_CONTENTS",
	0x8: "EV_S_CRTM_VERSION", 0x9: "EV_CPU_MICROCODE", 0xA: "EV_PLATFORM_CONFIG_FLAGS", 0xB: "EV_TABLE_OF_DEVICES",
	0xC: "EV_COMPACT_HASH", 0xD: "EV_IPL", 0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG", 0x80000002: "EV_EFI_VARIABLE_BOOT",
	0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION", 0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER", 0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
	0x80000006: "EV_EFI_GPT_EVENT", 0x80000007: "EV_EFI_ACTION", 0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
	0x80000009: "EV_EFI_HANDOFF_TABLES", 0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000B: "EV_EFI_HANDOFF_TABLES2",
	0x8000000C: "EV_EFI_VARIABLE_BOOT2", 0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}

func eventsAnnotated(events []evidence.LogEvent) (out []any) {
	for _, e := range events {
		name := eventNames[e.Type]
		if name == "" {
			name = fmt.Sprintf("UNKNOWN_%#x", e.Type)
		}
		sum := sha512.Sum384(e.Data)
		out = append(out, map[string]any{
			"index": e.MR, "type_name": name, "event": base64.StdEncoding.EncodeToString(e.Data),
			"digests":              []any{map[string]any{"alg": "SHA-384", "digest": hex.EncodeToString(e.Digest[:])}},
			"digest_matches_event": bytes.Equal(sum[:], e.Digest[:]), "details": map[string]any{},
		})
	}
	return out
}
