package result

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// The types that a receipt names (in-toto attestation framework, Statement v1).
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://github.com/ampoule-vm/ampoule/receipt/v1"
	PayloadType   = "application/vnd.in-toto+json"
)

// The names of a result: sealed, in clear, and of the tar in both.
const (
	SealedName = "result.tar.zst.age"
	ClearName  = "result.tar.zst"
	TarName    = "result.tar"
)

// maxSubjects is how many files a statement may be about.
const maxSubjects = 8

// MaxReceipt is the size in bytes beyond which ParseReceipt refuses.
const MaxReceipt = 4 << 20

// How the manifest was bound to the evidence, strongest first.
const (
	BindLaunch  = "launch"  // its digest is in HOST_DATA or MRCONFIGID
	BindPinned  = "pinned"  // its digest is on the measured command line
	BindRuntime = "runtime" // the guest extended its digest into PCR 8 or RTMR3 before it used any of it
	BindNone    = "none"    // not at all: only where the image permits it
)

// Predicate is what a run says of itself. The hardware signs it, so it is as good as the measured image that wrote
// it. Digests are lower-case hex; those of images carry their "sha256:".
type Predicate struct {
	ComputationID  string    `json:"computation_id,omitempty"`
	Completed      string    `json:"completed"`             // when the results were packed, TimeFormat, by a clock that the host sets
	Profile        string    `json:"profile"`               // production or simulation
	ManifestSHA384 string    `json:"manifest_sha384"`       // of the manifest's exact bytes
	InitdataSHA256 string    `json:"initdata_sha256"`       // of the initdata document around them
	Binding        string    `json:"binding"`               // BindLaunch, BindPinned, BindRuntime or BindNone
	Measurement    string    `json:"measurement,omitempty"` // launch digest, 96 hex; a verifier takes the evidence's
	Build          Build     `json:"build"`
	TEE            TEE       `json:"tee"`
	ImagePolicy    string    `json:"image_policy_sha256,omitempty"` // of the image policy that all images were held against
	Sealed         bool      `json:"sealed"`                        // the result is encrypted to the manifest's recipients
	Reason         Reason    `json:"reason"`                        // how the run went, up to the sealing
	Images         []Image   `json:"images"`                        // the algorithm first, then the datasets, then the runtime
	Workload       Ending    `json:"workload"`
	Resources      Resources `json:"resources"`
	Timeline       []Event   `json:"timeline"` // up to the sealing
	Notes          []string  `json:"notes"`    // what was laxer than the strict default, in words
}

// Image is one image that the run used, as it was resolved; or one file, which has Content, and neither ConfigDigest nor Layers.
type Image struct {
	Name         string   `json:"name"`   // algorithm, datasets[0], …, runtime
	URI          string   `json:"uri"`    // as in the manifest; of a file, without a query
	Digest       string   `json:"digest"` // of a file: of its bytes as fetched
	ConfigDigest string   `json:"config_digest,omitempty"`
	Content      string   `json:"content_digest,omitempty"` // of the file, decrypted and not yet decompressed
	Layers       []string `json:"layers"`                   // digests of the blobs as fetched
	Encrypted    bool     `json:"encrypted"`
	Pinned       bool     `json:"pinned"`
	PlainHTTP    bool     `json:"plain_http"`
}

// Ending is how the workload ended; its zero value: it did not run. Times are µs since the kernel booted.
type Ending struct {
	Exit     *int   `json:"exit,omitempty"`   // 0 to 255; nil when it did not end by itself
	Signal   string `json:"signal,omitempty"` // SIGSEGV, …
	Deadline bool   `json:"deadline,omitempty"`
	OOM      bool   `json:"oom,omitempty"`
	Started  int64  `json:"started_us"`
	Ended    int64  `json:"ended_us"`
}

// Statement is an in-toto Statement about one result.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"` // the files as delivered, and last the tar that they hold
	PredicateType string    `json:"predicateType"`
	Predicate     Predicate `json:"predicate"`
}

// Subject names a form of the result and its digest.
type Subject struct {
	Name   string `json:"name"`
	Digest Digest `json:"digest"`
}

// Digest is an in-toto DigestSet with the one digest that we use, 64 hex digits.
type Digest struct {
	SHA256 string `json:"sha256"`
}

// NewSubject is the file of that name whose bytes have the given SHA-256.
func NewSubject(name string, sha256 []byte) Subject {
	return Subject{name, Digest{hex.EncodeToString(sha256)}}
}

// NewStatement is the statement that p holds of the result in the given forms: first those that are delivered, last the
// tar inside, named TarName, whose digest tells nothing of its contents, as its first member is salt.
func NewStatement(p Predicate, forms ...Subject) ([]byte, error) {
	s := Statement{StatementType, forms, PredicateType, p}
	// Null is not another spelling of an empty list.
	for i := range p.Images {
		p.Images[i].Layers = notNil(p.Images[i].Layers)
	}
	s.Predicate.Images, s.Predicate.Timeline, s.Predicate.Notes = notNil(p.Images), notNil(p.Timeline), notNil(p.Notes)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	b := encode(s)
	if err := decode(b, &Statement{}); err != nil {
		return nil, fmt.Errorf("statement: text that is not UTF-8: %w", err)
	}
	return b, nil
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// ReportData is what the hardware signs for a statement: SHA-512 over a label, the length of the statement as eight
// big-endian bytes, and the statement. The label keeps a receipt from being taken for any other evidence.
func ReportData(statement []byte) [64]byte {
	h := sha512.New()
	h.Write([]byte("ampoule receipt v1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(statement))))
	h.Write(statement)
	return [64]byte(h.Sum(nil))
}

// Receipt is receipt.json: a statement and the evidence whose report data is ReportData of it. It looks like a DSSE
// envelope with evidence in the place of the signatures.
type Receipt struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // the statement's exact bytes; base64 in JSON
	Evidence    Evidence    `json:"evidence"`
	Collateral  *Collateral `json:"collateral,omitempty"` // nil as the guest makes it; a host completes it
}

// Evidence is a TEE's evidence in the JSON form of its kind (package evidence reads and writes it).
type Evidence struct {
	Kind     string          `json:"kind"`
	Evidence json.RawMessage `json:"evidence"`
}

// NewReceipt joins a statement, as NewStatement made it, with its evidence.
func NewReceipt(statement []byte, kind string, evidence json.RawMessage) ([]byte, error) {
	if !json.Valid(evidence) {
		return nil, errors.New("receipt: evidence that is not JSON")
	}
	return (&Receipt{PayloadType: PayloadType, Payload: statement, Evidence: Evidence{kind, evidence}}).Encode()
}

// Encode is the receipt's one JSON form without white space.
func (r *Receipt) Encode() ([]byte, error) {
	b := encode(r)
	if _, _, err := ParseReceipt(b); err != nil {
		return nil, err
	}
	return b, nil
}

// ParseReceipt reads a receipt of at most 4 MiB and the statement inside, both strictly. It does not judge the
// evidence: until a verifier has, nothing of the statement is true.
func ParseReceipt(b []byte) (*Receipt, *Statement, error) {
	if len(b) > MaxReceipt {
		return nil, nil, fmt.Errorf("receipt of %d bytes, at most %d", len(b), MaxReceipt)
	}
	var r Receipt
	if err := decode(b, &r); err != nil {
		return nil, nil, fmt.Errorf("receipt: %w", err)
	}
	if r.PayloadType != PayloadType {
		return nil, nil, fmt.Errorf("receipt: payloadType is %.80q, want %q", r.PayloadType, PayloadType)
	}
	if !name(r.Evidence.Kind) || len(r.Evidence.Evidence) == 0 || r.Evidence.Evidence[0] != '{' {
		return nil, nil, fmt.Errorf("receipt: evidence of kind %.40q; want a kind and an object", r.Evidence.Kind)
	}
	var s Statement
	if err := decode(r.Payload, &s); err != nil {
		return nil, nil, fmt.Errorf("receipt: statement: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, nil, fmt.Errorf("receipt: statement: %w", err)
	}
	return &r, &s, nil
}
