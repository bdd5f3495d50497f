package cvms

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/ampoule-vm/ampoule/internal/cvms/cvmstest"
	"github.com/ampoule-vm/ampoule/internal/manifest"
)

// zeros and count are hashes: as protobuf's JSON has them, and as the manifest's.
var (
	zeros        = base64.StdEncoding.EncodeToString(make([]byte, 32))
	count        = base64.StdEncoding.EncodeToString([]byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\xff"))
	zeroNumbers  = "[0" + strings.Repeat(",0", 31) + "]"
	countNumbers = "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,255]"
)

func request(t testing.TB, text string) []byte {
	t.Helper()
	return cvmstest.Bytes("ComputationRunReq", text)
}

// full is a request that has all there is, and fullManifest what Cocos' json.Marshal(agent.Computation) makes of it.
func full() (text, golden string) {
	text = `{
		"id": "1", "name": "a <b> & \"c\"", "description": "two\nlines, é\u2028",
		"datasets": [
			{"hash": "` + count + `", "userKey": "MCow", "filename": "iris.csv", "decompress": true,
				"source": {"type": "oci-image", "url": "docker://registry.example/data:v1", "kbs_resource_path": "default/key/d", "encrypted": true},
				"kbs": {"url": "https://kbs.example", "enabled": true}},
			{"hash": "` + zeros + `", "source": {"url": "docker://registry.example/plain:v1"}, "kbs": {}}
		],
		"algorithm": {"hash": "` + zeros + `", "userKey": "MCowBQ==", "source": {"type": "https", "url": "https://web.example/a?b&c"}, "algo_type": "bin",
			"algo_args": ["--epochs", "", "7"], "kbs": {"enabled": true}},
		"result_consumers": [{"userKey": "MCow"}, {"userKey": "MCowBQ=="}],
		"agent_config": {"port": "7002", "attested_tls": true, "cert_file": "PEM"}
	}`
	golden = `{"id":"1","name":"a \u003cb\u003e \u0026 \"c\"","description":"two\nlines, é\u2028","datasets":[` +
		`{"hash":` + countNumbers + `,"user_key":"MCow","filename":"iris.csv","source":{"type":"oci-image","url":"docker://registry.example/data:v1",` +
		`"kbs_resource_path":"default/key/d","encrypted":true},"decompress":true,"kbs":{"url":"https://kbs.example","enabled":true}},` +
		`{"hash":` + zeroNumbers + `,"source":{"url":"docker://registry.example/plain:v1"},"kbs":{}}],` +
		`"algorithm":{"hash":` + zeroNumbers + `,"user_key":"MCowBQ==","source":{"type":"https","url":"https://web.example/a?b\u0026c"},"algo_type":"bin",` +
		`"algo_args":["--epochs","","7"],"kbs":{"enabled":true}},"result_consumers":[{"user_key":"MCow"},{"user_key":"MCowBQ=="}]}`
	return text, golden
}

// TestManifest: the bytes are a function of the request, and those that an owner computes.
func TestManifest(t *testing.T) {
	text, golden := full()
	for name, c := range map[string]struct{ text, want string }{
		"all there is":        {text, golden},
		"nothing":             {`{}`, `{}`},
		"an id":               {`{"id": "x"}`, `{"id":"x"}`},
		"an empty algorithm":  {`{"algorithm": {"hash": "` + zeros + `"}}`, `{"algorithm":{"hash":` + zeroNumbers + `}}`},
		"an empty source":     {`{"algorithm": {"hash": "` + zeros + `", "source": {}}}`, `{"algorithm":{"hash":` + zeroNumbers + `,"source":{}}}`},
		"an empty consumer":   {`{"result_consumers": [{}]}`, `{"result_consumers":[{}]}`},
		"an agent's own part": {`{"agent_config": {"port": "7002"}}`, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := parseRequest(request(t, c.text))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := parsed.manifest(); err != nil || string(got) != c.want {
				t.Errorf("%v:\n%s\nwant\n%s", err, got, c.want)
			}
		})
	}
	golden = strings.Replace(golden, `"decompress":true,`, "", 1) // which is of files
	if _, err := manifest.Parse([]byte(golden), func(string) bool { return true }); err != nil {
		t.Errorf("what all there is becomes is no manifest: %v", err)
	}
}

// TestFieldsFromLater: what a later Cocos adds is passed over, wherever it stands.
func TestFieldsFromLater(t *testing.T) {
	text, golden := full()
	later := func(b []byte) []byte {
		b = protowire.AppendTag(b, 1000, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte("later"))
		b = protowire.AppendTag(b, 77, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, 1)
		b = protowire.AppendTag(b, 78, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, 1)
		b = protowire.AppendTag(b, 79, protowire.VarintType)
		return protowire.AppendVarint(b, 1<<63)
	}
	inner := protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), later(nil))
	c, err := parseRequest(append(later(request(t, text)), inner...))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.manifest(); err != nil || string(got) != strings.Replace(golden, `"}]}`, `"},{}]}`, 1) {
		t.Errorf("%v:\n%s", err, got)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	raw := func(parts ...any) (b []byte) {
		for i := 0; i < len(parts); i += 2 {
			b = protowire.AppendTag(b, protowire.Number(parts[i].(int)), protowire.BytesType)
			b = protowire.AppendBytes(b, parts[i+1].([]byte))
		}
		return b
	}
	short := base64.StdEncoding.EncodeToString(make([]byte, 31))
	long := base64.StdEncoding.EncodeToString(make([]byte, 33))
	items := func(field int, n int, item []byte) []byte { return bytes.Repeat(raw(field, item), n) }
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"a short hash":             {request(t, `{"datasets": [{"hash": "`+zeros+`"}, {"hash": "`+short+`"}]}`), "datasets[1].hash: 31 bytes, want 32"},
		"a long hash":              {request(t, `{"algorithm": {"hash": "`+long+`"}}`), "algorithm.hash: 33 bytes, want 32"},
		"no hash":                  {request(t, `{"algorithm": {"algo_type": "bin"}}`), "algorithm.hash: 0 bytes, want 32"},
		"text that is not UTF-8":   {raw(1, []byte{0xff}), "id: is no UTF-8"},
		"text that is a number":    {[]byte{1 << 3, 1}, "id: wire type 0, want 2"},
		"a flag that is text":      {raw(4, raw(1, make([]byte, 32), 5, []byte("x"))), "datasets[0]: decompress: wire type 2"},
		"a hash that is a number":  {raw(5, []byte{1 << 3, 1}), "algorithm: hash: wire type 0"},
		"a source that breaks off": {raw(5, raw(1, make([]byte, 32), 3, []byte{2<<3 | 2, 9})), "algorithm: source: field 2: 9 bytes, and the message has 0 more"},
		"a field that breaks off":  {[]byte{1<<3 | 2}, "field 1: no length"},
		"a number without an end":  {[]byte{9 << 3, 0x80}, "field 9: no varint"},
		"a number of 11 bytes":     {append([]byte{9 << 3}, bytes.Repeat([]byte{0xff}, 11)...), "field 9: no varint"},
		"eight bytes that are not": {[]byte{9<<3 | 1, 0}, "field 9: 8 bytes, and the message has 1 more"},
		"field 0":                  {[]byte{2, 0}, "no field begins here"},
		"a field number too high":  {protowire.AppendVarint(nil, 1<<32|2), "no field begins here"},
		"a group":                  {[]byte{9<<3 | 3, 9<<3 | 4}, "field 9: wire type 3"},
		"a length of 2^64-1":       {append([]byte{1<<3 | 2}, protowire.AppendVarint(nil, 1<<64-1)...), "field 1: 18446744073709551615 bytes"},
		"too much":                 {raw(3, make([]byte, MaxRequest)), "run request: 1048580 bytes, at most 1048576"},
		"too many datasets":        {items(4, maxItems+1, raw(1, make([]byte, 32))), "datasets[4096]: more than 4096"},
		"too many consumers":       {items(6, maxItems+1, nil), "result_consumers[4096]: more than 4096"},
		"too many arguments":       {raw(5, items(5, maxItems+1, nil)), "algo_args[4096]: more than 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := parseRequest(c.b); err == nil || !strings.Contains(err.Error(), "run request") {
				t.Errorf("%+v, %v", c, err)
			}
			if _, err := parseRequest(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestManifestOverItsLimit: a request may be within bounds and what becomes of it not.
func TestManifestOverItsLimit(t *testing.T) {
	c, err := parseRequest(request(t, `{"name": "`+strings.Repeat("<", 300_000)+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := c.manifest(); err == nil || !strings.Contains(err.Error(), "its manifest has 1800011 bytes") {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// asManifest is what the manifest of a request must say, by protobuf's own reading of it.
func asManifest(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = asManifest(v[i])
		}
	case map[string]any:
		delete(v, "agent_config")
		for name := range v {
			v[name] = asManifest(v[name])
		}
		if h, ok := v["hash"].(string); ok {
			numbers := []any{}
			b, _ := base64.StdEncoding.DecodeString(h)
			for _, n := range b {
				numbers = append(numbers, float64(n))
			}
			v["hash"] = numbers
		}
		if k, ok := v["userKey"]; ok {
			delete(v, "userKey")
			v["user_key"] = k
		}
	}
	return v
}

// withoutConfig is a request without its agent_config, into which nobody looks.
func withoutConfig(b []byte) (rest []byte) {
	for len(b) > 0 {
		number, _, n := protowire.ConsumeField(b)
		if n < 0 {
			return b
		}
		if number != 7 {
			rest = append(rest, b[:n]...)
		}
		b = b[n:]
	}
	return rest
}

// FuzzRequest: what is read, protobuf reads to be the same.
func FuzzRequest(f *testing.F) {
	text, _ := full()
	for _, s := range []string{text, `{}`, `{"id": "1", "algorithm": {"hash": "` + zeros + `"}}`, `{"datasets": [{"hash": "AA=="}]}`, `{"result_consumers": [{}, {"userKey": "AA=="}]}`} {
		f.Add(request(f, s))
	}
	f.Add([]byte("\x0a\x01a\x0a\x01b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseRequest(b)
		if err != nil {
			return
		}
		m := cvmstest.New("ComputationRunReq", `{}`)
		if err := proto.Unmarshal(withoutConfig(b), m); err != nil {
			t.Fatalf("protobuf does not take it: %v", err)
		}
		raw, err := c.manifest()
		if err != nil {
			return
		}
		var got any
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		if want := asManifest(cvmstest.JSON(m)); !reflect.DeepEqual(got, want) {
			t.Errorf("the manifest says %s, protobuf %s", raw, fmt.Sprint(want))
		}
	})
}
