package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// table is what the workload of a flow copies to its results.
const table = "1\n"

// files is a web server: what is at a path, and who asked.
type files struct {
	*httptest.Server
	at   map[string][]byte
	mu   sync.Mutex
	seen []*http.Request
	look func(*http.Request) int // a status instead, or 0
}

func newFiles(t *testing.T, at map[string][]byte) *files {
	t.Helper()
	f := &files{at: at}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Clone(r.Context()))
	f.mu.Unlock()
	if f.look != nil {
		if status := f.look(r); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	b, ok := f.at[r.URL.Path]
	if to, moved := strings.CutPrefix(string(b), "Location: "); moved {
		http.Redirect(w, r, to, http.StatusFound)
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(b)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *files) host() string { return strings.TrimPrefix(f.URL, "https://") }

// serving makes a flow whose one dataset is a file of s, and which trusts s.
func (f *flow) serving(s *files, dataset, more map[string]any) {
	f.Helper()
	var m map[string]any
	if err := json.Unmarshal(f.raw, &m); err != nil {
		f.Fatal(err)
	}
	m["datasets"] = []any{dataset}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	m["registries"] = []any{map[string]any{"host": s.host(), "ca": string(ca)}}
	for name, v := range more {
		m[name] = v
	}
	f.raw, _ = json.Marshal(m)
}

var datasetKey = bytes.Repeat([]byte{7}, 32)

func chunked(t *testing.T, plain string, key []byte) []byte {
	var b bytes.Buffer
	if err := object.Seal(&b, strings.NewReader(plain), key); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// whole is Cocos' form by the standard library alone.
func whole(t *testing.T, plain string, key []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("twelve bytes")
	return gcm.Seal(nonce, nonce, []byte(plain), nil)
}

func zipped(t *testing.T, files ...string) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, files[i+1])
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hexSum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// TestFiles are datasets from a web server, in whole boots.
func TestFiles(t *testing.T) {
	plain, other := []byte(table), bytes.Repeat([]byte{8}, 32)
	flipped := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	archive := zipped(t, "table.csv", table, "more/x", "x")
	sealed := map[string]any{"encrypted": true, "kbs_resource_path": demo.DatasetKey}
	for name, c := range map[string]struct {
		content []byte
		path    string
		want    map[string]any
		step    string // "": it runs
		log     string
	}{
		"plain, with its digest":              {plain, "/a/table.csv", map[string]any{"sha256": hexSum(plain)}, "", ""},
		"plain, with another's digest":        {[]byte("2\n"), "/table.csv", map[string]any{"sha256": hexSum(plain)}, "pull", "wrong digest"},
		"plain, by its SHA3-256":              {plain, "/table.csv", map[string]any{"sha3_256": fmt.Sprintf("%x", sha3.Sum256(plain))}, "", ""},
		"plain, with another's SHA3-256":      {[]byte("2\n"), "/table.csv", map[string]any{"sha3_256": fmt.Sprintf("%x", sha3.Sum256(plain))}, "pull", "SHA3-256"},
		"by another name, and a secret query": {plain, "/x?X-Amz-Signature=s3cret", map[string]any{"sha256": hexSum(plain), "filename": "table.csv"}, "", ""},
		"encrypted as Cocos does":             {whole(t, table, datasetKey), "/table.csv", sealed, "", ""},
		"encrypted in chunks":                 {chunked(t, table, datasetKey), "/table.csv", sealed, "", ""},
		"as Cocos does, with another key":     {whole(t, table, other), "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"in chunks, with another key":         {chunked(t, table, other), "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"as Cocos does, with a bit flipped":   {flipped(whole(t, table, datasetKey)), "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"in chunks, with a bit flipped":       {flipped(chunked(t, table, datasetKey)), "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"as Cocos does, cut short":            {whole(t, table, datasetKey)[:29], "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"in chunks, cut short":                {chunked(t, table, datasetKey)[:57], "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"in clear where encryption is asked":  {[]byte(strings.Repeat(table, 100)), "/table.csv", sealed, "pull", object.ErrSealed.Error()},
		"too short to be encrypted":           {plain, "/table.csv", sealed, "resolve", "too few for a nonce and a tag"},
		"a zip":                               {archive, "/t.zip", map[string]any{"sha256": hexSum(archive), "decompress": true}, "", ""},
		"an encrypted zip":                    {chunked(t, string(archive), datasetKey), "/t.zip", map[string]any{"encrypted": true, "kbs_resource_path": demo.DatasetKey, "decompress": true, "sha256": hexSum(archive)}, "", ""},
		"a zip that goes out":                 {zipped(t, "../table.csv", table), "/t.zip", map[string]any{"encrypted": false, "sha256": hexSum(zipped(t, "../table.csv", table)), "decompress": true}, "pull", "unsafe archive entry"},
		"no archive":                          {plain, "/t.zip", map[string]any{"sha256": hexSum(plain), "decompress": true}, "pull", "it is no zip, tar"},
		"none there":                          {nil, "/table.csv", map[string]any{"sha256": hexSum(plain)}, "resolve", "404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			if err := f.world.SetKey(demo.DatasetKey, datasetKey); err != nil {
				t.Fatal(err)
			}
			path, _, _ := strings.Cut(c.path, "?")
			s := newFiles(t, map[string][]byte{path: c.content})
			if c.content == nil {
				s.at = nil
			}
			dataset := map[string]any{"uri": s.URL + c.path}
			for k, v := range c.want {
				dataset[k] = v
			}
			f.serving(s, dataset, nil)
			f.boot()
			if c.step != "" {
				f.ends(c.step, result.BadImage, false)
				if log := f.log(); !strings.Contains(log, c.log) || !strings.Contains(log, "datasets[0]") {
					t.Errorf("the log does not say %q of datasets[0]:\n%s", c.log, log)
				}
				f.leftNothing()
				return
			}
			f.ends("", result.OK, true)
			if b, err := os.ReadFile(filepath.Join(f.opened(), "results/copy.csv")); err != nil || string(b) != table {
				t.Errorf("the workload found %q, %v", b, err)
			}
			content := plain
			if c.want["decompress"] != nil {
				content = archive
			}
			got := f.verdict().Statement.Predicate.Images[1]
			if got.Digest != "sha256:"+hexSum(c.content) || got.Content != "sha256:"+hexSum(content) || got.Encrypted != (c.want["encrypted"] != nil) || !got.Pinned {
				t.Errorf("the receipt says %+v", got)
			}
			if strings.Contains(string(f.peer.receipt)+fmt.Sprint(f.statement())+f.log(), "s3cret") {
				t.Error("receipt or log have the query")
			}
		})
	}
}

// leftNothing looks for a spool or a half-unpacked dataset.
func (f *flow) leftNothing() {
	f.Helper()
	left, err := filepath.Glob(filepath.Join(f.m.dir, ".*"))
	if err != nil || len(left) > 0 {
		f.Errorf("left behind: %q, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(f.m.dir, "input-1")); err == nil {
		f.Error("the dataset is there")
	}
}

// TestFileWithoutDigest: only where the image permits it, and the receipt says so.
func TestFileWithoutDigest(t *testing.T) {
	for _, permitted := range []bool{false, true} {
		f := newFlow(t)
		s := newFiles(t, map[string][]byte{"/table.csv": []byte(table)})
		f.serving(s, map[string]any{"uri": s.URL + "/table.csv"}, nil)
		if !permitted {
			f.boot()
			f.ends("manifest", result.BadManifest, false)
			continue
		}
		f.line += ",tag"
		f.boot()
		f.ends("", result.OK, true)
		if notes := fmt.Sprint(f.statement().Predicate.Notes); !strings.Contains(notes, "datasets[0] was neither encrypted nor named by digest") {
			t.Errorf("notes %s", notes)
		}
	}
}

// TestFileLargerThanMemory is refused before more than its first byte is fetched.
func TestFileLargerThanMemory(t *testing.T) {
	f := newFlow(t)
	s := newFiles(t, map[string][]byte{"/table.csv": bytes.Repeat([]byte(table), 1<<20)})
	f.serving(s, map[string]any{"uri": s.URL + "/table.csv", "sha256": hexSum(nil)}, nil)
	f.tamper = func(m *machine) { m.memory = func() (room, error) { return room{memory: 1 << 20}, nil } }
	f.boot()
	f.ends("resolve", result.BadImage, false)
	if len(s.seen) != 1 || s.seen[0].Header.Get("Range") != "bytes=0-0" {
		t.Errorf("%d requests, want one for the first byte", len(s.seen))
	}
}

// TestFileFromAnUnknownAuthority is not taken, nor with the authority of another host.
func TestFileFromAnUnknownAuthority(t *testing.T) {
	f := newFlow(t)
	s := newFiles(t, map[string][]byte{"/table.csv": []byte(table)})
	f.serving(s, map[string]any{"uri": s.URL + "/table.csv", "sha256": hexSum([]byte(table))}, nil)
	f.edit(`"host":"`+s.host(), `"host":"r.example`)
	f.boot()
	f.ends("resolve", result.BadImage, false)
	if log := f.log(); !strings.Contains(log, "certificate") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

const storeLogin = "default/credential/store"

// TestS3 asks a store that checks the signature, with credentials from the broker, which stay there.
func TestS3(t *testing.T) {
	for name, c := range map[string]struct{ login, secret, step string }{
		"JSON":                   {`{"AccessKeyId":"AKID","SecretAccessKey":"s3cret\/key","SessionToken":"t0ken"}`, "s3cret/key", ""},
		"an AWS file":            {"[default]\naws_access_key_id = AKID\naws_secret_access_key = s3cret/key\naws_session_token=t0ken\n", "s3cret/key", ""},
		"another's":              {`{"AccessKeyId":"AKID","SecretAccessKey":"s3cret/key","SessionToken":"t0ken"}`, "other", "resolve"},
		"no credentials at all":  {`s3cret/key`, "", "resolve"},
		"an access token for S3": {`{"access_token":"s3cret/key"}`, "", "resolve"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			s := newFiles(t, map[string][]byte{"/bucket/dir with spaces/table.csv": []byte(table)})
			s.look = func(r *http.Request) int {
				if !signedBy(r, "AKID", c.secret, "eu-test-1") || r.Header.Get("X-Amz-Security-Token") != "t0ken" {
					return http.StatusForbidden
				}
				return 0
			}
			f.serving(s, map[string]any{"uri": "s3://bucket/dir with spaces/table.csv", "sha256": hexSum([]byte(table))},
				map[string]any{"stores": []any{map[string]any{"url": "s3://bucket", "endpoint": s.URL, "region": "eu-test-1", "credentials": storeLogin}}})
			if err := f.world.SetKey(storeLogin, []byte(c.login)); err != nil {
				t.Fatal(err)
			}
			f.grants = []string{storeLogin}
			f.boot()
			if c.step != "" {
				f.ends(c.step, result.BadImage, false)
			} else {
				f.ends("", result.OK, true)
			}
			if all := f.log() + f.console.String() + string(f.peer.receipt); strings.Contains(all, "s3cret") || strings.Contains(all, "t0ken") {
				t.Errorf("credentials are told:\n%s", all)
			}
		})
	}
}

// signedBy is AWS' Signature Version 4 once more, from its documentation, for the one kind of request that is made.
func signedBy(r *http.Request, id, secret, region string) bool {
	date := r.Header.Get("X-Amz-Date")
	if len(date) != 16 {
		return false
	}
	names := "host;range;x-amz-content-sha256;x-amz-date;x-amz-security-token"
	headers := fmt.Sprintf("host:%s\nrange:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\nx-amz-security-token:%s\n",
		r.Host, r.Header.Get("Range"), r.Header.Get("X-Amz-Content-Sha256"), date, r.Header.Get("X-Amz-Security-Token"))
	if r.Header.Get("Range") == "" {
		names, headers = strings.Replace(names, "range;", "", 1), strings.Replace(headers, "range:\n", "", 1)
	}
	canonical := "GET\n" + r.RequestURI + "\n\n" + headers + "\n" + names + "\n" + hexSum(nil)
	scope := date[:8] + "/" + region + "/s3/aws4_request"
	key := []byte("AWS4" + secret)
	for _, part := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hexSum([]byte(canonical))) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(part))
		key = h.Sum(nil)
	}
	return r.Header.Get("Authorization") == fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%x", id, scope, names, key)
}

// TestRedirects: a server may send us on, but not with what it was told, and not wherever it likes.
func TestRedirects(t *testing.T) {
	for name, c := range map[string]struct {
		to   func(other *files) string
		step string
		log  string
	}{
		"another host": {func(other *files) string { return other.URL + "/table.csv?s3cret" }, "", ""},
		"plain http":   {func(other *files) string { return "http://" + other.host() + "/table.csv?s3cret" }, "resolve", "redirect refused"},
		"metadata":     {func(*files) string { return "https://169.254.169.254/latest?s3cret" }, "resolve", "redirect refused"},
		"this machine": {func(*files) string { return "https://localhost/x?s3cret" }, "resolve", "redirect refused"},
		"in a circle":  {func(*files) string { return "/redirect?s3cret" }, "resolve", "over 5"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			other := newFiles(t, map[string][]byte{"/table.csv": []byte(table)})
			s := newFiles(t, map[string][]byte{"/redirect": []byte("Location: " + c.to(other))})
			f.serving(s, map[string]any{"uri": s.URL + "/redirect", "filename": "table.csv", "sha256": hexSum([]byte(table))},
				map[string]any{"stores": []any{map[string]any{"url": s.URL, "credentials": storeLogin}}})
			var m map[string]any
			if err := json.Unmarshal(f.raw, &m); err != nil {
				t.Fatal(err)
			}
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw})
			m["registries"] = append(m["registries"].([]any), map[string]any{"host": other.host(), "ca": string(ca)})
			f.raw, _ = json.Marshal(m)
			if err := f.world.SetKey(storeLogin, []byte(`{"access_token":"t0ken"}`)); err != nil {
				t.Fatal(err)
			}
			f.grants = []string{storeLogin}
			f.boot()
			if c.step != "" {
				f.ends(c.step, result.BadImage, false)
			} else {
				f.ends("", result.OK, true)
			}
			log := f.log()
			if !strings.Contains(log, c.log) || strings.Contains(log, "s3cret") || strings.Contains(log, "t0ken") {
				t.Errorf("the log is to say %q, and no secrets:\n%s", c.log, log)
			}
			for _, r := range s.seen {
				if r.Header.Get("Authorization") != "Bearer t0ken" {
					t.Error("the first host did not get the token")
				}
			}
			for _, r := range other.seen {
				if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
					t.Errorf("the next host was told %v", r.Header)
				}
			}
		})
	}
}

// TestFileOverPlainHTTP only where the image permits it, and the receipt says so.
func TestFileOverPlainHTTP(t *testing.T) {
	s := httptest.NewServer(&files{at: map[string][]byte{"/table.csv": []byte(table)}})
	defer s.Close()
	f := newFlow(t)
	f.serving(newFiles(t, nil), map[string]any{"uri": s.URL + "/table.csv", "sha256": hexSum([]byte(table))}, nil)
	f.boot()
	f.ends("", result.OK, true)
	if notes := fmt.Sprint(f.statement().Predicate.Notes); !strings.Contains(notes, "datasets[0] came over plain http") {
		t.Errorf("notes %s", notes)
	}

	f = newFlow(t)
	f.allPlain()
	f.serving(newFiles(t, nil), map[string]any{"uri": s.URL + "/table.csv", "sha256": hexSum([]byte(table))}, nil)
	f.drop("kbs") // whose URL would be refused as well
	f.line = "ampoule.profile=simulation"
	f.boot()
	f.ends("manifest", result.BadManifest, false)
}

// TestKeysOfFilesAreWiped, and what stores are asked with, before the workload starts; and also when pull fails.
func TestKeysOfFilesAreWiped(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f := newFlow(t)
		s := newFiles(t, map[string][]byte{"/bucket/table.csv": chunked(t, table, datasetKey)})
		f.serving(s, map[string]any{"uri": "s3://bucket/table.csv", "encrypted": true, "kbs_resource_path": demo.DatasetKey},
			map[string]any{"stores": []any{map[string]any{"url": "s3://bucket", "endpoint": s.URL, "credentials": storeLogin}}})
		if err := errors.Join(f.world.SetKey(demo.DatasetKey, datasetKey), f.world.SetKey(storeLogin, []byte(`{"AccessKeyId":"AKID","SecretAccessKey":"s3cret"}`))); err != nil {
			t.Fatal(err)
		}
		f.grants = []string{storeLogin}
		var key []byte
		signed := false
		s.look = func(r *http.Request) int {
			signed = strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKID/")
			return 0
		}
		f.tamper = func(m *machine) {
			unpack, work := m.unpackFile, m.runWorkload
			m.unpackFile = func(ctx context.Context, o *object.Object, dir string, w object.Want, l image.Limits, p func(int64)) error {
				key = w.Key
				if !bytes.Equal(key, datasetKey) {
					t.Errorf("the file's key is %x", key)
				}
				if fails {
					return errors.New(secret)
				}
				return unpack(ctx, o, dir, w, l, p)
			}
			m.runWorkload = func(ctx context.Context, spec workload.Spec) (workload.Outcome, error) {
				if len(bytes.Trim(key, "\x00")) > 0 {
					t.Error("the file's key is held while the workload runs")
				}
				return work(ctx, spec)
			}
		}
		f.boot()
		if fails {
			f.ends("pull", result.BadImage, false)
		} else {
			f.ends("", result.OK, true)
		}
		if len(key) != 32 || len(bytes.Trim(key, "\x00")) > 0 || !signed {
			t.Errorf("the key is %x; signed: %t", key, signed)
		}
	}

	login, err := object.ParseCredentials([]byte(`{"access_token":"t0ken"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := &run{machine: &machine{memory: func() (room, error) { return room{}, errors.New("no memory") }}, storeLogins: map[string]*object.Credentials{"s3://bucket": login}}
	if err := r.pull(t.Context()); err == nil || !reflect.ValueOf(*login).IsZero() {
		t.Errorf("after pull, which failed with %v, the credentials of a store are left", err)
	}
}
