package keypolicy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/rego"
	"github.com/ampoule-vm/ampoule/internal/measure"
)

func hash(n byte) (m evidence.Measurement) {
	for i := range m {
		m[i] = n
	}
	return m
}

func pcr(n byte) measure.Digests {
	d := measure.Digests{SHA384: hash(n)}
	copy(d.SHA256[:], d.SHA384[:])
	return d
}

var manifests = [][32]byte{{1, 2, 3}, {4, 5, 6}}

// measured is an image in one shape of each kind that can be released to, and in two that cannot.
func measured() *measure.Measurements {
	shape := func(name string, tee measure.TEE, vmm measure.Platform, boot string) measure.Shape {
		return measure.Shape{Name: name, TEE: tee, VMM: vmm, Boot: boot}
	}
	pcrs := map[int]measure.Digests{4: pcr(0x44), 9: pcr(0x99), 11: pcr(0xbb), 12: {}}
	return &measure.Measurements{
		Version: 1,
		Shapes: []measure.Prediction{
			{Shape: shape("snp-1", measure.OnSNP, measure.OnQEMU, measure.BootDirect), Kind: evidence.SNP, Measurements: []evidence.Measurement{hash(0xa1)}},
			{Shape: shape("snp-2", measure.OnSNP, measure.OnQEMU, measure.BootDirect), Kind: evidence.SNP, Measurements: []evidence.Measurement{hash(0xa2)}},
			{Shape: shape("tdx", measure.OnTDX, measure.OnQEMU, measure.BootDirect), Kind: evidence.TDX, Measurements: []evidence.Measurement{hash(0xd1), hash(0xd2)},
				RTMR: map[int][]evidence.Measurement{1: {hash(0x11), hash(0x12)}, 2: {hash(0x22)}}},
			{Shape: shape("azure-snp", measure.OnSNP, measure.OnAzure, measure.BootUKI), Kind: evidence.AzSNPvTPM, PCR: pcrs},
			{Shape: shape("azure-tdx", measure.OnTDX, measure.OnAzure, measure.BootUKI), Kind: evidence.AzTDXvTPM, PCR: pcrs},
			{Shape: shape("gcp-snp", measure.OnSNP, measure.OnGCP, measure.BootUKI), Kind: evidence.SNP, Measurements: []evidence.Measurement{hash(0xee)}},
			{Shape: shape("aws-tpm", measure.OnTPM, measure.OnAWS, measure.BootUKI), PCR: pcrs},
		},
		Refused: map[string]string{"old": "the firmware has no table"},
	}
}

var options = Options{
	Manifests: manifests, Resources: []string{"default/key/*", "other/cert/one"},
	Paravisor: []evidence.Measurement{hash(0xcc)}, MinTCB: kbsserver.MinTCB{Bootloader: 4, SNP: 20, Microcode: 72},
}

func made(t *testing.T) *Policy {
	t.Helper()
	p, err := Make(measured(), options)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// claims are those of a guest of a kind that is to get its keys, in the forms of Trustee v0.21.
func claims(kind evidence.Kind) map[string]any {
	snp := map[string]any{
		"measurement": hash(0xa2).String(), "policy_debug_allowed": false, "policy_migrate_ma": false,
		"reported_tcb_bootloader": 4, "reported_tcb_tee": 0, "reported_tcb_snp": 22, "reported_tcb_microcode": 72,
	}
	launch := hash(0xd2)
	if kind == evidence.AzTDXvTPM {
		launch = hash(0xcc)
	}
	tdx := map[string]any{
		"quote": map[string]any{
			"header": map[string]any{"tee_type": "81000000"},
			"body": map[string]any{"mr_td": launch.String(), "rtmr_1": hash(0x11).String(), "rtmr_2": hash(0x22).String(),
				"rtmr_3": evidence.Measurement{}.String(), "mr_config_id": fmt.Sprintf("%x", evidence.InRegister(evidence.MRConfigID, manifests[1][:]))},
		},
		"td_attributes": map[string]any{"debug": false}, "tcb_status": "UpToDate", "collateral_expiration_status": "0",
	}
	register := map[evidence.Kind]string{evidence.SNP: evidence.HostData, evidence.TDX: evidence.MRConfigID}[kind]
	if register == "" {
		register = evidence.PCR8
	}
	bound := fmt.Sprintf("%x", evidence.InRegister(register, manifests[1][:]))
	tpm := map[string]any{"pcr04": pcr(0x44).SHA256.String(), "pcr09": pcr(0x99).SHA256.String(), "pcr11": pcr(0xbb).SHA256.String(), "pcr12": measure.Hash256{}.String(), "pcr08": bound}
	out := map[string]any{"init_data": bound}
	switch kind {
	case evidence.SNP:
		out["snp"] = snp
	case evidence.TDX:
		out["tdx"] = tdx
	case evidence.AzSNPvTPM:
		m := hash(0xcc)
		for name, v := range snp {
			snp[name] = fmt.Sprint(v)
		}
		snp["measurement"], snp["tpm"] = base64.StdEncoding.EncodeToString(m[:]), tpm
		out[string(kind)] = snp
	case evidence.AzTDXvTPM:
		tdx["tpm"] = tpm
		out[string(kind)] = tdx
	}
	return out
}

// asked is what a broker says: the appraisal's status, then the resource policy.
func (p *Policy) asked(t *testing.T, path string, claims map[string]any) (allow bool, why string) {
	t.Helper()
	a, err := rego.CompileAttestation(p.Attestation)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rego.Compile(p.Resource)
	if err != nil {
		t.Fatal(err)
	}
	references := map[string]json.RawMessage{}
	b, err := json.Marshal(p.References)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &references); err != nil {
		t.Fatal(err)
	}
	vector, err := a.Appraise(t.Context(), claims, references)
	if err != nil {
		t.Fatal(err)
	}
	status := "affirming"
	for name, n := range vector {
		if n > 31 || n == 1 {
			status, why = "contraindicated", why+fmt.Sprintf("%s is %d; ", name, n)
		}
	}
	allow, more, err := r.Resource(t.Context(), path, map[string]any{"submods": map[string]any{"cpu0": map[string]any{"ear.status": status, "ear.veraison.annotated-evidence": claims}}})
	if err != nil {
		t.Fatal(err)
	}
	return allow, why + more
}

func TestPoliciesAllowWhatTheyMust(t *testing.T) {
	p := made(t)
	for _, kind := range kinds {
		for _, path := range []string{"default/key/any", "other/cert/one"} {
			if ok, why := p.asked(t, path, claims(kind)); !ok {
				t.Errorf("%s: %s is refused: %s", kind, path, why)
			}
		}
		for _, path := range []string{"default/cert/any", "other/cert/two", "other/key/one", "default/key/any/more", "default/key"} {
			if ok, _ := p.asked(t, path, claims(kind)); ok {
				t.Errorf("%s: %s is released", kind, path)
			}
		}
	}
}

// leaves are all claims, by their paths.
func leaves(at string, m map[string]any, visit func(path string, set func(any), value any)) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if below, ok := m[name].(map[string]any); ok {
			leaves(at+name+"/", below, visit)
			continue
		}
		visit(at+name, func(v any) { m[name] = v }, m[name])
	}
}

// Every claim that the fixture has counts: changed alone it refuses, and so does its absence.
func TestPoliciesRefuseEverySingleChange(t *testing.T) {
	p := made(t)
	free := map[string]bool{ // what is judged by another claim, or has no bound that a change would cross
		"tdx/quote/body/rtmr_3": true, "tdx/quote/body/mr_config_id": true, "snp/reported_tcb_tee": true,
		"az-snp-vtpm/reported_tcb_tee": true, "az-snp-vtpm/init_data": true, "init_data": true,
		"az-tdx-vtpm/quote/body/rtmr_1": true, "az-tdx-vtpm/quote/body/rtmr_2": true, "az-tdx-vtpm/quote/body/rtmr_3": true,
		"az-tdx-vtpm/quote/body/mr_config_id": true, "az-tdx-vtpm/collateral_expiration_status": true,
	}
	for _, kind := range kinds {
		var paths []string
		leaves("", claims(kind), func(path string, _ func(any), _ any) { paths = append(paths, path) })
		for _, path := range paths {
			if free[path] && (path != "init_data" || strings.HasPrefix(string(kind), "az-")) {
				continue
			}
			for _, change := range []string{"another value", "nothing"} {
				c := claims(kind)
				leaves("", c, func(at string, set func(any), v any) {
					if at != path {
						return
					}
					switch v := v.(type) {
					case bool:
						set(!v)
					case int:
						set(v - 3)
					case string:
						switch v {
						case "false":
							set("true")
						case "0", "4", "22", "72":
							set("1")
						default:
							set("01" + v[2:])
						}
					}
					if change == "nothing" {
						set(nil)
					}
				})
				if ok, _ := p.asked(t, "default/key/any", c); ok {
					t.Errorf("%s: released although %s is %s", kind, path, change)
				}
			}
		}
	}
}

// Each policy alone refuses another image and another manifest, whatever the other one says.
func TestTheResourcePolicyStandsAlone(t *testing.T) {
	p := made(t)
	r, err := rego.Compile(p.Resource)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		try := func(status string, c map[string]any) bool {
			ok, _, err := r.Resource(t.Context(), "default/key/any", map[string]any{"submods": map[string]any{"cpu0": map[string]any{"ear.status": status, "ear.veraison.annotated-evidence": c}}})
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if !try("affirming", claims(kind)) || try("warning", claims(kind)) || try("contraindicated", claims(kind)) {
			t.Errorf("%s: the status of the appraisal does not decide", kind)
		}
		other := claims(kind)
		for name := range other {
			if name != "init_data" {
				other[name].(map[string]any)["measurement"] = hash(0).String()
				if tdx, ok := other[name].(map[string]any)["quote"].(map[string]any); ok {
					tdx["body"].(map[string]any)["mr_td"] = hash(0).String()
				}
			}
		}
		if try("affirming", other) {
			t.Errorf("%s: another launch measurement is released to", kind)
		}
	}
}

// A TDX guest of a launcher that knows no manifest binds it itself, in RTMR3.
func TestTDXIsBoundByRTMR3(t *testing.T) {
	p := made(t)
	bound := func(rtmr3 evidence.Measurement, config [48]byte) bool {
		c := claims(evidence.TDX)
		body := c["tdx"].(map[string]any)["quote"].(map[string]any)["body"].(map[string]any)
		body["rtmr_3"], body["mr_config_id"], c["init_data"] = rtmr3.String(), fmt.Sprintf("%x", config), fmt.Sprintf("%x", config)
		ok, _ := p.asked(t, "default/key/any", c)
		return ok
	}
	_, digest := evidence.InitDataEvent(manifests[0])
	extended := evidence.Measurement(evidence.Extend384([48]byte{}, digest))
	_, digest = evidence.InitDataEvent([32]byte{9})
	other := evidence.Measurement(evidence.Extend384([48]byte{}, digest))
	if !bound(extended, [48]byte{}) {
		t.Error("a manifest in RTMR3 is refused")
	}
	if bound(other, [48]byte{}) || bound(evidence.Measurement{}, [48]byte{}) || bound(extended, [48]byte{1}) {
		t.Error("another manifest in RTMR3, none, or one beside MRCONFIGID is released to")
	}
}

// Claims of SNP as versions behind v0.21 have them.
func TestPoliciesReadLaterClaims(t *testing.T) {
	p := made(t)
	c := claims(evidence.SNP)
	c["snp"] = map[string]any{"evidence": map[string]any{
		"measurement": hash(0xa1).String(), "policy": map[string]any{"debug_allowed": false, "migrate_ma_allowed": false},
		"reported_tcb": map[string]any{"bootloader": 4, "tee": 0, "snp": 20, "microcode": 72},
	}}
	if ok, why := p.asked(t, "default/key/any", c); !ok {
		t.Error(why)
	}
	e := c["snp"].(map[string]any)["evidence"].(map[string]any)
	e["reported_tcb"].(map[string]any)["microcode"] = 71
	if ok, _ := p.asked(t, "default/key/any", c); ok {
		t.Error("an old patch level is released to")
	}
	e["reported_tcb"].(map[string]any)["microcode"] = 72
	e["policy"].(map[string]any)["debug_allowed"] = true
	if ok, _ := p.asked(t, "default/key/any", c); ok {
		t.Error("a guest that can be debugged is released to")
	}
}

// The firmware that starts our TDX guests also starts others, which could play a paravisor and sign any PCR.
func TestNoOtherGuestPassesAsAParavisor(t *testing.T) {
	p := made(t)
	c := claims(evidence.AzTDXvTPM)
	c["az-tdx-vtpm"].(map[string]any)["quote"].(map[string]any)["body"].(map[string]any)["mr_td"] = hash(0xd2).String()
	if ok, _ := p.asked(t, "default/key/any", c); ok {
		t.Error("released to a paravisor that is our own firmware")
	}
	c = claims(evidence.AzSNPvTPM)
	m := hash(0xa2)
	c["az-snp-vtpm"].(map[string]any)["measurement"] = base64.StdEncoding.EncodeToString(m[:])
	if ok, _ := p.asked(t, "default/key/any", c); ok {
		t.Error("released to a paravisor that is our own image")
	}
}

// What a build writes of an image is the whole of it but for the paravisor: on Azure it trusts nothing until that is added.
func TestOfImage(t *testing.T) {
	p, err := OfImage(measured())
	if err != nil || p.Resource != nil || len(p.Broker) > 0 || p.Left["azure-snp"] == "" || p.Left["azure-tdx"] == "" {
		t.Fatalf("%+v, %v", p, err)
	}
	files, err := p.Files()
	if got := slices.Sorted(maps.Keys(files)); err != nil || !slices.Equal(got, []string{AttestationFile, ReferenceValuesFile, RVPSFile}) {
		t.Errorf("files %q, %v", got, err)
	}
	p.Resource = made(t).Resource
	azure := map[evidence.Kind]string{evidence.AzSNPvTPM: "az_snp_paravisor", evidence.AzTDXvTPM: "az_tdx_paravisor"}
	for _, kind := range kinds {
		if ok, why := p.asked(t, "default/key/any", claims(kind)); ok != (azure[kind] == "") {
			t.Errorf("%s: released %v, %s", kind, ok, why)
		}
	}
	for kind, name := range azure {
		p.References[name] = made(t).References[name]
		if ok, why := p.asked(t, "default/key/any", claims(kind)); !ok {
			t.Errorf("%s, with its paravisor: refused, %s", kind, why)
		}
	}
}

func TestMakeLeavesOutWhatProvesNothing(t *testing.T) {
	p := made(t)
	if got := slices.Sorted(maps.Keys(p.Left)); !slices.Equal(got, []string{"aws-tpm", "gcp-snp", "old"}) {
		t.Errorf("left out are %q", got)
	}
	if strings.Contains(string(p.Resource), hash(0xee).String()) {
		t.Error("the cloud's firmware is in the policy")
	}
	o := options
	o.Paravisor = nil
	if p, err := Make(measured(), o); err != nil || p.Left["azure-snp"] == "" || p.Left["azure-tdx"] == "" || p.Broker[evidence.AzSNPvTPM] != nil {
		t.Errorf("without a paravisor: %v", err)
	}
	for name, change := range map[string]func(*measure.Measurements, *Options){
		"no manifest":      func(_ *measure.Measurements, o *Options) { o.Manifests = nil },
		"no resource":      func(_ *measure.Measurements, o *Options) { o.Resources = nil },
		"a short resource": func(_ *measure.Measurements, o *Options) { o.Resources = []string{"default/key"} },
		"a glob":           func(_ *measure.Measurements, o *Options) { o.Resources = []string{"default/key/a*"} },
		"a quote":          func(_ *measure.Measurements, o *Options) { o.Resources = []string{`default/key/a"b`} },
		"clouds alone":     func(m *measure.Measurements, _ *Options) { m.Shapes = m.Shapes[5:] },
	} {
		m, o := measured(), options
		change(m, &o)
		if _, err := Make(m, o); err == nil {
			t.Errorf("%s: a policy was made", name)
		}
	}
}

// What the embedded broker reads is what was meant.
func TestBrokerPolicyIsRead(t *testing.T) {
	p := made(t)
	for _, kind := range kinds {
		b, err := json.Marshal(p.Broker[kind])
		if err != nil {
			t.Fatal(err)
		}
		got, err := kbsserver.ParsePolicy(b)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		r := got["default/key/*"]
		if len(got) != 2 || len(r.InitData) != 2 || !slices.Equal(r.TEE, []evidence.Kind{kind}) || len(r.Measurements) == 0 {
			t.Errorf("%s: %s", kind, b)
		}
		switch kind {
		case evidence.SNP:
			if r.MinTCB == nil || r.MinTCB.Microcode != 72 {
				t.Errorf("%s: patch levels %v", kind, r.MinTCB)
			}
		case evidence.TDX:
			if len(r.RTMR[1]) != 2 || len(r.RTMR[2]) != 1 {
				t.Errorf("%s: RTMRs %v", kind, r.RTMR)
			}
		default:
			if len(r.PCR) != 4 {
				t.Errorf("%s: PCRs %v", kind, r.PCR)
			}
		}
	}
}

func TestRVPS(t *testing.T) {
	b, err := made(t).RVPS()
	if err != nil {
		t.Fatal(err)
	}
	var message struct {
		Version, Type string
		Payload       []byte
	}
	var values map[string]any
	if err := json.Unmarshal(b, &message); err != nil || json.Unmarshal(message.Payload, &values) != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if message.Version != "0.1.0" || message.Type != "sample" || len(values) != 18 {
		t.Errorf("%s %s with %d values: %v", message.Version, message.Type, len(values), values)
	}
}
