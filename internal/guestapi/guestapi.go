// Package guestapi is what a workload can ask of the machine that it runs in, as CoCo's REST API has it.
//
// Paths, status codes and texts are those of wire/SPEC.md §5.1, so that programs written for confidential containers
// work unchanged. What differs: a workload gets what the manifest grants and nothing else, and evidence is of a value
// under a label of our own, so that no key broker takes it for this machine's (see ReportData).
//
// The workload is not trusted. Requests, connections and answers are bounded, and only loopback peers are answered:
// the listener belongs to the workload's own network namespace.
package guestapi

import (
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Version is what /info calls the API's.
const Version = "0.1.0"

// maxBody bounds the body of a request, bytes. Only /aa/aael has one.
const maxBody = 64 << 10

// An API answers for one workload. What is nil or empty is not granted. The functions are called by several goroutines
// at once, each with the context of its request.
type API struct {
	// Resources are the granted paths, repository/type/tag.
	Resources []string

	// Resource gives the bytes of a granted resource. They are written to the workload and left alone: the caller owns
	// them.
	Resource func(ctx context.Context, path string) ([]byte, error)

	// Token gives a broker's token and the key that it is bound to, PEM.
	Token func(ctx context.Context) (token string, keyPEM []byte, err error)

	// Evidence gives the evidence JSON of §2 for a report data. It is called by one goroutine at a time: the hardware is
	// slow, and its firmware may shut out who asks too often.
	Evidence func(ctx context.Context, reportData [64]byte) ([]byte, error)

	TEE string // kind of the machine, as brokers spell it; /info gives it where anything of /aa is granted

	asking sync.Mutex // held around Evidence
}

// ReportData is what the evidence for a workload's runtime data carries: SHA-512 over "ampoule workload evidence
// v1\x00", the length of the data in eight bytes, big-endian, and the data. CoCo puts the data itself there; but then a
// workload could have evidence for a key of its own, which a broker would take for this machine's.
func ReportData(runtimeData []byte) [64]byte {
	h := sha512.New()
	h.Write([]byte("ampoule workload evidence v1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(runtimeData))))
	h.Write(runtimeData)
	return [64]byte(h.Sum(nil))
}

// The texts of §5.1.
const (
	badRequest   = "BAD REQUEST"
	forbidden    = "Forbidden"
	notFound     = "URL NOT FOUND"
	notAllowed   = "Method Not Allowed"
	noResources  = "Resource Feature Not Enabled"
	noAttesting  = "Attestation Feature Not Enabled"
	octetStream  = "application/octet-stream"
	jsonDocument = "application/json"
)

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		text(w, http.StatusForbidden, forbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	path := r.URL.EscapedPath() // as it was sent: paths are compared, not decoded
	switch {
	case path == "/info":
		a.info(w, r)
	case strings.HasPrefix(path, "/cdh/"):
		a.resource(w, r, path)
	case strings.HasPrefix(path, "/aa/"):
		a.attest(w, r, path)
	default:
		text(w, http.StatusNotFound, notFound)
	}
}

func (a *API) resources() bool { return len(a.Resources) > 0 && a.Resource != nil }

func (a *API) attesting() bool { return a.Token != nil || a.Evidence != nil }

func (a *API) info(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		text(w, http.StatusMethodNotAllowed, notAllowed)
		return
	}
	said := struct {
		Version string `json:"version"`
		TEE     string `json:"tee,omitempty"`
		Feature string `json:"feature"`
	}{Version: Version}
	switch {
	case a.resources() && a.attesting():
		said.Feature = "all"
	case a.attesting():
		said.Feature = "attestation"
	case a.resources():
		said.Feature = "resource"
	}
	if a.attesting() {
		said.TEE = a.TEE
	}
	b, err := json.Marshal(said)
	if err != nil {
		failed(w, err)
		return
	}
	answer(w, jsonDocument, b)
}

// resource gives what is granted. The reference takes any method here, and drops the query.
func (a *API) resource(w http.ResponseWriter, r *http.Request, path string) {
	if !a.resources() {
		text(w, http.StatusNotFound, noResources)
		return
	}
	name, ok := strings.CutPrefix(path, "/cdh/resource/")
	switch {
	case !ok || r.Method != http.MethodGet:
		text(w, http.StatusNotFound, notFound)
	case !slices.Contains(a.Resources, name):
		// As for a resource that a broker refuses. No broker hears of it: the path is the workload's.
		failed(w, errors.New("resource is not granted by the manifest"))
	default:
		b, err := a.Resource(r.Context(), name)
		if err != nil {
			failed(w, err)
			return
		}
		answer(w, octetStream, b)
	}
}

func (a *API) attest(w http.ResponseWriter, r *http.Request, path string) {
	if !a.attesting() {
		text(w, http.StatusNotFound, noAttesting)
		return
	}
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		text(w, http.StatusBadRequest, badRequest)
		return
	}
	switch r.Method + " " + path {
	case "GET /aa/token":
		a.token(w, r, query)
	case "GET /aa/evidence", "GET /aa/additional-evidence":
		a.evidence(w, r, query)
	case "POST /aa/aael":
		a.extend(w, r)
	default:
		text(w, http.StatusNotFound, notFound)
	}
}

func (a *API) token(w http.ResponseWriter, r *http.Request, query map[string]string) {
	if a.Token == nil {
		text(w, http.StatusNotFound, noAttesting)
		return
	}
	kind, ok := query["token_type"]
	if !ok {
		text(w, http.StatusBadRequest, badRequest)
		return
	}
	if kind != "kbs" && kind != "coco_as" {
		failed(w, errors.New("token_type is neither kbs nor coco_as"))
		return
	}
	token, key, err := a.Token(r.Context())
	defer clear(key)
	if err != nil {
		failed(w, err)
		return
	}
	if kind == "coco_as" {
		answer(w, octetStream, []byte(token))
		return
	}
	b, err := json.Marshal(map[string]string{"token": token, "tee_keypair": string(key)})
	defer clear(b)
	if err != nil {
		failed(w, err)
		return
	}
	answer(w, octetStream, b)
}

// evidence also answers for additional devices, of which there are none.
func (a *API) evidence(w http.ResponseWriter, r *http.Request, query map[string]string) {
	if a.Evidence == nil {
		text(w, http.StatusNotFound, noAttesting)
		return
	}
	data, err := runtimeData(query)
	if err != nil {
		text(w, http.StatusBadRequest, badRequest)
		return
	}
	if r.URL.Path == "/aa/additional-evidence" {
		answer(w, octetStream, nil)
		return
	}
	b, err := a.oneEvidence(r.Context(), ReportData(data))
	if err != nil {
		failed(w, err)
		return
	}
	answer(w, octetStream, b)
}

func (a *API) oneEvidence(ctx context.Context, reportData [64]byte) ([]byte, error) {
	a.asking.Lock()
	defer a.asking.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err // who asked has gone, and nobody would read it
	}
	return a.Evidence(ctx, reportData)
}

var errQuery = errors.New("query")

func runtimeData(query map[string]string) ([]byte, error) {
	data, ok := query["runtime_data"]
	if !ok {
		return nil, errQuery
	}
	switch encoding, given := query["encoding"]; {
	case !given:
		return []byte(data), nil
	case encoding == "base64":
		if strings.ContainsAny(data, "\r\n") { // which Go skips
			return nil, errQuery
		}
		return base64.RawURLEncoding.Strict().DecodeString(data)
	}
	return nil, errQuery
}

// extend refuses to extend a runtime register: they hold what the machine itself has measured.
func (a *API) extend(w http.ResponseWriter, r *http.Request) {
	var event struct{ Domain, Operation, Content *string }
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(b, &event)
	}
	if err != nil || event.Domain == nil || event.Operation == nil || event.Content == nil {
		failed(w, errors.New("event is not domain, operation and content in JSON"))
		return
	}
	answer(w, jsonDocument, []byte(`{"success":"false","message":"The platform does not support runtime measurement"}`))
}

// parseQuery reads a query as forms are encoded; of a name that comes twice the last counts, as in the reference.
func parseQuery(raw string) (map[string]string, error) {
	query := map[string]string{}
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, err
		}
		if query[name], err = url.QueryUnescape(value); err != nil {
			return nil, err
		}
	}
	return query, nil
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header()["Content-Type"] = nil // the reference sends none; net/http would guess
	w.WriteHeader(status)
	io.WriteString(w, s)
}

// failed says why in a text, bounded: it goes to the workload, which is inside.
func failed(w http.ResponseWriter, err error) {
	s := err.Error()
	text(w, http.StatusInternalServerError, s[:min(len(s), 1024)])
}

func answer(w http.ResponseWriter, kind string, b []byte) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	w.Write(b)
}
