package keypolicy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// attestation judges a guest by reference values. It is one text for every image. Claims of SNP are read in the forms of
// Trustee v0.14 to v0.21 and of the versions behind it.
const attestation = `# Made by ampoule policy: which guests are worth trust, by reference values.
package policy

import rego.v1

# Numbers are those of AR4SI: 2 and 3 affirm, 33 to 97 contraindicate.
default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

snp := input.snp.evidence if input.snp.evidence
else := input.snp

az_snp := input["az-snp-vtpm"]

az_tdx := input["az-tdx-vtpm"]

# SNP
executables := 3 if snp.measurement in query_reference_value("snp_launch_measurement")

hardware := 2 if {
	tcb := object.union({
		"bootloader": object.get(snp, "reported_tcb_bootloader", -1),
		"tee": object.get(snp, "reported_tcb_tee", -1),
		"snp": object.get(snp, "reported_tcb_snp", -1),
		"microcode": object.get(snp, "reported_tcb_microcode", -1),
	}, object.get(snp, "reported_tcb", {}))
	recent(tcb)
}

recent(tcb) if {
	tcb.bootloader >= query_reference_value("snp_least_bootloader")
	tcb.tee >= query_reference_value("snp_least_tee")
	tcb.snp >= query_reference_value("snp_least_snp")
	tcb.microcode >= query_reference_value("snp_least_microcode")
}

configuration := 2 if {
	snp.policy_debug_allowed == false
	snp.policy_migrate_ma == false
}

configuration := 2 if {
	snp.policy.debug_allowed == false
	snp.policy.migrate_ma_allowed == false
}

# TDX
executables := 3 if {
	input.tdx.quote.body.mr_td in query_reference_value("mr_td")
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

hardware := 2 if {
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if input.tdx.td_attributes.debug == false

# Azure. The paravisor's measurement has a name of its own for each kind: another guest that is trusted, but is no
# paravisor, must not pass as one.
executables := 3 if {
	az_snp.measurement in query_reference_value("az_snp_paravisor")
	az_snp.tpm.pcr04 in query_reference_value("az_snp_pcr04")
	az_snp.tpm.pcr09 in query_reference_value("az_snp_pcr09")
	az_snp.tpm.pcr11 in query_reference_value("az_snp_pcr11")
	az_snp.tpm.pcr12 in query_reference_value("az_snp_pcr12")
}

hardware := 2 if recent({
	"bootloader": to_number(az_snp.reported_tcb_bootloader),
	"tee": to_number(az_snp.reported_tcb_tee),
	"snp": to_number(az_snp.reported_tcb_snp),
	"microcode": to_number(az_snp.reported_tcb_microcode),
})

configuration := 2 if {
	az_snp.policy_debug_allowed in {false, "false"}
	az_snp.policy_migrate_ma in {false, "false"}
}

executables := 3 if {
	az_tdx.quote.body.mr_td in query_reference_value("az_tdx_paravisor")
	az_tdx.tpm.pcr04 in query_reference_value("az_tdx_pcr04")
	az_tdx.tpm.pcr09 in query_reference_value("az_tdx_pcr09")
	az_tdx.tpm.pcr11 in query_reference_value("az_tdx_pcr11")
	az_tdx.tpm.pcr12 in query_reference_value("az_tdx_pcr12")
}

hardware := 2 if {
	az_tdx.quote.header.tee_type == "81000000"
	az_tdx.tcb_status == "UpToDate"
}

configuration := 2 if az_tdx.td_attributes.debug == false
`

// resource is the policy for resources. It names the values itself, so that it stands by its own beside any attestation
// policy, and asks for that one's approval as well.
func resource(all map[evidence.Kind]*known, o Options) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# Made by ampoule policy: who gets which resource.
package policy

import rego.v1

default allow := false

status := input.submods.cpu0["ear.status"]

claims := input.submods.cpu0["ear.veraison.annotated-evidence"]

asked if {
	data.plugin == "resource"
	count(data["resource-path"]) == 3
	released
}

released if {
	some pattern in resources
	every i, segment in pattern {
		segment in {"*", data["resource-path"][i]}
	}
}
`)
	var failed error
	value := func(name string, v any) {
		text, err := json.MarshalIndent(v, "", "\t")
		if err != nil {
			failed = err
		}
		fmt.Fprintf(&b, "\n%s := %s\n", name, text)
	}
	var paths [][]string
	for _, r := range o.Resources {
		paths = append(paths, strings.Split(r, "/"))
	}
	value("resources", paths)
	for _, kind := range kinds {
		k := all[kind]
		if k == nil {
			continue
		}
		prefix := strings.ReplaceAll(strings.TrimSuffix(string(kind), "-vtpm"), "-", "_")
		b.WriteString(rules[kind])
		value(prefix+"_launch", k.launch)
		value(prefix+"_manifests", k.bound)
		if kind == evidence.TDX {
			value("tdx_rtmr_3", k.rtmr3)
		}
		for _, n := range registerOrder(kind) {
			name := names[kind][n]
			value(prefix+"_"+name, k.registers[name])
		}
	}
	return b.Bytes(), failed
}

func registerOrder(kind evidence.Kind) []int {
	switch kind {
	case evidence.TDX:
		return []int{1, 2}
	case evidence.AzSNPvTPM, evidence.AzTDXvTPM:
		return []int{4, 9, 11, 12}
	}
	return nil
}

// zeros is MRCONFIGID of a launcher that knows no manifest.
var zeros = strings.Repeat("0", 96)

// rules are those of a kind: what runs, and which manifest it was launched with.
var rules = map[evidence.Kind]string{
	evidence.SNP: `
# SNP: the launch digest, and HOST_DATA.
snp := claims.snp.evidence if claims.snp.evidence
else := claims.snp

allow if {
	asked
	status == "affirming"
	snp.measurement in snp_launch
	claims.init_data in snp_manifests
}
`,
	evidence.TDX: `
# TDX: MRTD, RTMR1 and RTMR2, and MRCONFIGID, or RTMR3 where the launcher left that zero.
tdx := claims.tdx.quote.body if claims.tdx.td_attributes.debug == false

allow if {
	asked
	status == "affirming"
	tdx.mr_td in tdx_launch
	tdx.rtmr_1 in tdx_rtmr_1
	tdx.rtmr_2 in tdx_rtmr_2
	claims.init_data in tdx_manifests
}

allow if {
	asked
	status == "affirming"
	tdx.mr_td in tdx_launch
	tdx.rtmr_1 in tdx_rtmr_1
	tdx.rtmr_2 in tdx_rtmr_2
	tdx.mr_config_id == "` + zeros + `"
	tdx.rtmr_3 in tdx_rtmr_3
}
`,
	evidence.AzSNPvTPM: `
# Azure on SNP: the paravisor, and PCRs 4, 9, 11 and 12 of its TPM; PCR 8 is the manifest's.
az_snp := claims["az-snp-vtpm"]

allow if {
	asked
	status == "affirming"
	az_snp.measurement in az_snp_launch
	az_snp.tpm.pcr04 in az_snp_pcr04
	az_snp.tpm.pcr09 in az_snp_pcr09
	az_snp.tpm.pcr11 in az_snp_pcr11
	az_snp.tpm.pcr12 in az_snp_pcr12
	az_snp.tpm.pcr08 in az_snp_manifests
}
`,
	evidence.AzTDXvTPM: `
# Azure on TDX: the paravisor, and PCRs 4, 9, 11 and 12 of its TPM; PCR 8 is the manifest's.
az_tdx := claims["az-tdx-vtpm"] if claims["az-tdx-vtpm"].td_attributes.debug == false

allow if {
	asked
	status == "affirming"
	az_tdx.quote.body.mr_td in az_tdx_launch
	az_tdx.tpm.pcr04 in az_tdx_pcr04
	az_tdx.tpm.pcr09 in az_tdx_pcr09
	az_tdx.tpm.pcr11 in az_tdx_pcr11
	az_tdx.tpm.pcr12 in az_tdx_pcr12
	az_tdx.tpm.pcr08 in az_tdx_manifests
}
`,
}
