package kbs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// facts are what a session sent, by which a refusal is explained. A broker says next to nothing about why it refuses
// evidence (§1.8): the possible causes follow from what there was to refuse.
type facts struct {
	kind     evidence.Kind
	gen      *generation
	initdata bool                // a document was sent, which the broker holds against a register
	oldForm  bool                // evidence in the form of older brokers
	report   *evidence.SNPReport // SNP
	chain    bool                // SNP: certificates of the host went along
	eventLog bool                // TDX
}

func (f *facts) of(ev evidence.Evidence, oldForm, initdata bool) {
	f.oldForm, f.initdata, f.eventLog = oldForm, initdata, len(ev.EventLog) > 0
	if ev.Kind != evidence.SNP {
		return
	}
	if r, err := evidence.ParseSNP(ev.Report); err == nil {
		f.report = &r
	}
	certs, err := evidence.ParseCerts(ev.Aux)
	f.chain = err == nil && len(certs) > 0
}

func (f *facts) plain() bool { return f.gen != nil && f.gen.plain }

func (f *facts) sentInitData() bool { return f.initdata }

func (f *facts) vlek() bool { return f.report != nil && f.report.Signer() == evidence.VLEK }

// A reason is one row of the tables below: when it applies, and what to tell the owner.
type reason struct {
	kinds       []evidence.Kind // nil: of any
	variants    []string        // nil: of any
	at          string          // "": at any request
	when        func(f *facts) bool
	cause, next string
}

func (r *reason) applies(d *DeniedError, f *facts) bool {
	return (r.kinds == nil || slices.Contains(r.kinds, f.kind)) && (r.variants == nil || slices.Contains(r.variants, d.Variant)) &&
		(r.at == "" || r.at == d.at || r.at == unread && d.at == atAuth && unreadableDetail(d.Detail)) && (r.when == nil || r.when(f))
}

// unread is auth where the broker says that it cannot parse its body.
const unread = "auth, unread"

// explain finds cause and next step of a refusal.
func (d *DeniedError) explain(f facts) (cause, next string) {
	if v := expected(d.Detail); v != "" && d.at == atAuth {
		return explainMismatch(v, f)
	}
	if d.at == atAttest && d.refusesEvidence() {
		var causes, steps []string
		for _, r := range evidenceReasons {
			if r.applies(d, &f) {
				causes, steps = append(causes, r.cause), append(steps, r.next)
			}
		}
		return "the broker does not accept the evidence and does not say why; what it can be: " + enumerate(causes), enumerate(steps)
	}
	for _, r := range denialReasons {
		if r.applies(d, &f) {
			return r.cause, r.next
		}
	}
	return "", ""
}

// enumerate numbers causes and steps alike, so that each step finds its cause.
func enumerate(all []string) string {
	for i := range all {
		all[i] = fmt.Sprintf("(%d) %s", i+1, all[i])
	}
	return strings.Join(all, ", ")
}

func explainMismatch(version string, f facts) (cause, next string) {
	wanted := generationOf(version)
	switch {
	case wanted == nil:
		return "the broker speaks protocol " + version + ", this build speaks " + spoken(),
			"run a Trustee of one of these releases, or an init that knows the other protocol"
	case f.gen == nil || wanted == f.gen:
		return "the broker asks for protocol " + version + ", which it was asked with", "look for a proxy that changes requests"
	}
	return fmt.Sprintf("the broker asks for protocol %s (Trustee %s) after another version was agreed on: a session changes only once", version, wanted.trustee),
		"look whether brokers of different releases are behind this address, and give each an address of its own"
}

var (
	azure      = []evidence.Kind{evidence.AzSNPvTPM, evidence.AzTDXvTPM}
	snp        = []evidence.Kind{evidence.SNP}
	tdx        = []evidence.Kind{evidence.TDX}
	sample     = []evidence.Kind{evidence.Sample}
	noBegin    = []string{"AttestationError", "FailedAuthentication"}
	policyDeny = []string{"PolicyDeny"}
)

// denialReasons explains every variant but the refusal of evidence; the first row that applies is it. Where a row has
// several variants, those behind the first are mostly what Trustee up to v0.9 says in its place.
var denialReasons = []reason{
	{kinds: azure, at: unread,
		cause: "the broker cannot read the request: it knows Azure's vTPM neither as az-snp-vtpm and az-tdx-vtpm nor by the names of Trustee up to v0.15",
		next:  "run a Trustee that is built with the Azure verifiers"},
	{at: unread,
		cause: "the broker cannot read the request: most likely it has no verifier for this kind of TEE",
		next:  "run a Trustee that is built with the verifier of this TEE"},
	{kinds: sample, variants: noBegin, at: atAuth,
		cause: "the broker does not begin with this guest: it may take no sample evidence, which proves nothing",
		next:  "for development start ampoule kbs with --allow-sample; for real data run on a TEE"},
	{variants: noBegin, at: atAuth,
		cause: "the broker does not begin with this guest: it may have no verifier for this kind of TEE, or cannot reach its attestation service",
		next:  "read the broker's log at this time"},

	{kinds: sample, variants: policyDeny,
		cause: "the policy of the resource refuses this measurement or manifest: the policy that Trustee comes with refuses all sample evidence, which proves nothing",
		next:  "for development give the broker a resource policy that allows sample evidence, such as Trustee's allow_all.rego; for real data run on a TEE"},
	{variants: policyDeny, when: (*facts).plain,
		cause: "the policy of the resource refuses this measurement or manifest, or wants claims of the initdata document, which cannot be sent in the protocol of Trustee up to v0.13",
		next:  "compare the launch digest of the image and the digest of the manifest with the policy and the reference values; let the policy look at the register that holds the digest"},
	{variants: policyDeny,
		cause: "the policy of the resource refuses this measurement or manifest, or the attestation policy judged the evidence badly",
		next:  "compare the launch digest of the image and the digest of the manifest with the resource policy and the reference values of the broker"},
	{variants: []string{"ParsePolicyError", "PolicyEngineError", "PolicyEngineFailed", "PolicyEndpoint"},
		cause: "the broker cannot evaluate its resource policy",
		next:  "check the policy with opa, upload it again (base64url without padding), and read the broker's log"},

	{variants: []string{"PluginInternalError", "ReadSecretFailed"},
		cause: "the policy allows it, but the resource is not there, or the broker cannot read it",
		next:  "upload the resource under exactly this path, and read the broker's log about its storage"},
	{variants: []string{"TokenNotFound", "MissingCookie", "InvalidCookie", "ExpiredCookie", "UnAuthenticatedCookie"},
		cause: "the broker does not know the session, also not after a new handshake: it was restarted, or several instances that share no sessions are behind this address",
		next:  "send each guest to one instance, or let the instances share sessions and token keys"},
	{variants: []string{"TokenVerifierError", "TokenParseFailed", "AttestationClaimsParseFailed", "PublicKeyGetFailed"},
		cause: "the broker lost the session and does not accept its own token either: it does not trust the attestation service that signed it, or the clocks of the two differ",
		next:  "give the broker the certificate of its attestation service (attestation_token, trusted_certs_paths), and compare their clocks"},
	{variants: []string{"TokenIssueFailed"},
		cause: "the broker's attestation service gave it no token",
		next:  "read the log of the attestation service"},
	{variants: []string{"JweError", "JWEFailed"},
		cause: "the broker cannot encrypt for the key type of this session",
		next:  "set the key type of this broker in the manifest to ECDH-ES+A256KW-P256 or RSA-OAEP-256"},
	{variants: []string{"InvalidRequestPath", "PluginNotFound", "InvalidRequest"},
		cause: "this address is not a key broker with the resource plugin, or it has another path in front",
		next:  "give the address up to and without /kbs/v0, and enable the plugin named resource"},
	{variants: []string{"AdminAuthAccess", "AdminAuthInitialization", "UserPublicKeyNotProvided", "SetSecretFailed"},
		cause: "the broker took a guest for an administrator: something on the way changes methods or paths",
		next:  "look for a proxy in front of the broker that rewrites requests"},
	{variants: []string{"SerdeError"},
		cause: "the broker could not read the request or write its answer",
		next:  "look for a proxy that changes bodies, and read the broker's log"},
	{variants: []string{"HTTPFailed", "HTTPSFailed", "PluginManagerInitialization", "RvpsError", "StorageBackendInitialization", "PrometheusError"},
		cause: "the broker is not set up right",
		next:  "read the broker's log from its start"},
	{variants: []string{""},
		cause: "the answer is not in the words of a key broker: a proxy, gateway or other server refuses in its place",
		next:  "check the address, and what is in front of the broker"},
	{
		cause: "the broker's reason is not one that Trustee up to v0.21 gives",
		next:  "read the broker's log at this time"},
}

// evidenceReasons is what can be wrong with evidence, what is certain to matter first. All rows that apply are given.
var evidenceReasons = []reason{
	{when: func(f *facts) bool { return f.report != nil && f.report.Version < 3 && !f.plain() },
		cause: "the report has version 2, which Trustee refuses from v0.14 on",
		next:  "let the host update its SEV-SNP firmware"},
	{when: func(f *facts) bool { return f.report != nil && f.report.VMPL != 0 },
		cause: "the report is of another VMPL than 0, since this guest runs under an SVSM or paravisor; Trustee takes only 0",
		next:  "run on a host without one, or with a broker that takes it"},
	{when: func(f *facts) bool { return f.vlek() && !f.chain },
		cause: "the report is signed by a VLEK, and the host gave no certificate for it, which cannot be had elsewhere",
		next:  "let the host put the VLEK certificate into the table that it gives to guests"},
	{when: func(f *facts) bool { return f.report != nil && !f.vlek() && !f.chain },
		cause: "the host gave no certificates, and the broker cannot get the VCEK of this chip",
		next:  "let the broker reach AMD's key server (kdsintf.amd.com), or give it an offline store or the host a certificate table"},
	{when: func(f *facts) bool { return f.report != nil && f.chain },
		cause: "the certificates do not fit the report: its TCB differs from theirs, or they do not end in AMD's root, as in a simulation",
		next:  "let the host refresh its certificate table after firmware updates; for simulated evidence give ampoule kbs the root of the simulation"},
	{when: func(f *facts) bool { return f.report != nil && f.plain() },
		cause: "brokers up to Trustee v0.13 take the report in a form of their releases; the one that was sent is that of v0.12 and v0.13",
		next:  "run Trustee v0.14 or later"},
	{kinds: tdx,
		cause: "the quote does not verify: collateral is out of date or the broker cannot get it, or the quote is simulated",
		next:  "let the broker reach its PCCS or Intel's PCS, and the host register its platform; for simulated evidence give ampoule kbs the root of the simulation"},
	{when: func(f *facts) bool { return f.eventLog },
		cause: "the event log does not replay to the RTMRs of the quote",
		next:  "look in the broker's log for the RTMR that differs"},
	{kinds: azure, when: func(f *facts) bool { return f.oldForm && !f.plain() },
		cause: "the broker refused the newest form of the evidence and then the oldest, which every release knows: the form is not the reason",
		next:  "see the other causes"},
	{kinds: azure,
		cause: "the vTPM's quote, the HCL report or the certificate of the paravisor does not verify",
		next:  "let the broker reach AMD's or Intel's servers, and compare the PCRs with its reference values"},
	{kinds: snp, when: (*facts).sentInitData,
		cause: "HOST_DATA does not hold the digest of the initdata document that was sent",
		next:  "launch with the digest of exactly these bytes, of the algorithm that the document names"},
	{kinds: tdx, when: (*facts).sentInitData,
		cause: "MRCONFIGID does not hold the digest of the initdata document that was sent",
		next:  "launch with the digest of exactly these bytes, of the algorithm that the document names"},
	{kinds: azure, when: (*facts).sentInitData,
		cause: "PCR 8 does not hold the digest of the initdata document that was sent, or its algorithm is not sha256",
		next:  "make the document with algorithm sha256, and let nothing else extend PCR 8"},
	{kinds: sample,
		cause: "the broker takes no sample evidence, which proves nothing",
		next:  "for development run a broker that has the sample verifier (ampoule kbs --allow-sample); for real data run on a TEE"},
	{
		cause: "the session expired before the evidence came or belongs to another instance, or the nonce or key in the evidence are not those of the session",
		next:  "read the broker's log at this time: it names the check"},
}
