package cvms

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ampoule-vm/ampoule/internal/cvms/cvmstest"
)

// TestWhatAnAgentSays is read as protobuf reads it.
func TestWhatAnAgentSays(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"an event": {eventMessage("id-1", "Running", "Starting", time.Unix(1_700_000_000, 5)),
			`{"agent_event": {"event_type": "Running", "timestamp": {"seconds": "1700000000", "nanos": 5}, "computation_id": "id-1", "originator": "agent", "status": "Starting"}}`},
		"an event of a clock before 1970": {eventMessage("1", "Failed", "Failed", time.Unix(-1, 0)),
			`{"agent_event": {"event_type": "Failed", "timestamp": {}, "computation_id": "1", "originator": "agent", "status": "Failed"}}`},
		"acceptance":  {runMessage("1", ""), `{"run_res": {"computation_id": "1"}}`},
		"refusal":     {runMessage("1", "bad-manifest"), `{"run_res": {"computation_id": "1", "error": "bad-manifest"}}`},
		"an end":      {stoppedMessage("1"), `{"stopComputationRes": {"computation_id": "1"}}`},
		"a state":     {stateMessage("q", "Running"), `{"agentStateRes": {"id": "q", "state": "Running"}}`},
		"no question": {stateMessage("", "Running"), `{"agentStateRes": {"state": "Running"}}`},
		"no report":   {reportMessage(), `{"vTPMattestationReport": {}}`},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := cvmstest.Parse("ClientStreamMessage", c.b)
			if err != nil {
				t.Fatal(err)
			}
			if want := cvmstest.New("ClientStreamMessage", c.want); !proto.Equal(m, want) {
				t.Errorf("%v, want %v", m, want)
			}
		})
	}
}

func TestWhatAServerSays(t *testing.T) {
	id := "id-1"
	for name, c := range map[string]struct {
		b    []byte
		want serverMessage
		err  string
	}{
		"a chunk":              {cvmstest.Bytes("ServerStreamMessage", `{"runReqChunks": {"data": "AAEC", "id": "id-1"}}`), serverMessage{chunk: &chunk{data: []byte{0, 1, 2}, id: id}}, ""},
		"the last chunk":       {cvmstest.Bytes("ServerStreamMessage", `{"runReqChunks": {"id": "id-1", "is_last": true}}`), serverMessage{chunk: &chunk{id: id, last: true}}, ""},
		"a request":            {cvmstest.Bytes("ServerStreamMessage", `{"runReq": {"id": "id-1"}}`), serverMessage{request: []byte("\x0a\x04id-1")}, ""},
		"an empty request":     {cvmstest.Bytes("ServerStreamMessage", `{"runReq": {}}`), serverMessage{request: []byte{}}, ""},
		"a stop":               {cvmstest.Bytes("ServerStreamMessage", `{"stopComputation": {"computation_id": "id-1"}}`), serverMessage{stop: &id}, ""},
		"a question":           {cvmstest.Bytes("ServerStreamMessage", `{"agentStateReq": {"id": "id-1"}}`), serverMessage{state: &id}, ""},
		"a farewell":           {cvmstest.Bytes("ServerStreamMessage", `{"disconnectReq": {"id": "id-1"}}`), serverMessage{disconnect: true}, ""},
		"nothing":              {nil, serverMessage{}, ""},
		"what is from later":   {[]byte{6<<3 | 2, 1, 7, 15 << 3, 1}, serverMessage{}, ""},
		"two things":           {[]byte{4<<3 | 2, 0, 5<<3 | 2, 0}, serverMessage{}, "it says two things"},
		"a farewell as number": {[]byte{5 << 3, 1}, serverMessage{}, "disconnectReq: wire type 0"},
		"a request as number":  {[]byte{2 << 3, 1}, serverMessage{}, "runReq: wire type 0"},
		"data as a number":     {[]byte{1<<3 | 2, 2, 1 << 3, 1}, serverMessage{}, "runReqChunks: data: wire type 0"},
		"an id not in UTF-8":   {[]byte{4<<3 | 2, 3, 1<<3 | 2, 1, 0xff}, serverMessage{}, "agentStateReq: id: is no UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parseServer(c.b)
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
			if c.err == "" && err != nil || !reflect.DeepEqual(m, c.want) {
				t.Errorf("%+v, %v, want %+v", m, err, c.want)
			}
		})
	}
}

func TestFrames(t *testing.T) {
	large := make([]byte, maxMessage)
	r := io.MultiReader(bytes.NewReader(frame([]byte("one"))), bytes.NewReader(frame(nil)), bytes.NewReader(frame(large)))
	var buf []byte
	var err error
	for _, want := range [][]byte{[]byte("one"), {}, large} {
		if buf, err = readFrame(r, buf); err != nil || !bytes.Equal(buf, want) {
			t.Fatalf("%d bytes, %v; want %d", len(buf), err, len(want))
		}
	}
	if _, err = readFrame(r, buf); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last: %v, want the end", err)
	}
	for name, c := range map[string]struct{ frame, err string }{
		"compressed":       {"\x01\x00\x00\x00\x01x", "flags 1"},
		"too large":        {"\x00\xff\xff\xff\xff", "4294967295 bytes"},
		"a head cut short": {"\x00\x00", "unexpected EOF"},
		"no body":          {"\x00\x00\x00\x00\x02", "breaks off"},
		"a body cut short": {"\x00\x00\x00\x00\x02x", "breaks off"},
	} {
		if b, err := readFrame(strings.NewReader(c.frame), nil); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if _, err := readFrame(strings.NewReader(c.frame), nil); errors.Is(err, io.EOF) {
			t.Errorf("%s: taken for the end of the call", name)
		}
	}
}

func FuzzServer(f *testing.F) {
	for _, s := range []string{`{"runReqChunks": {"data": "AAEC", "id": "1", "is_last": true}}`, `{"runReq": {"id": "1"}}`, `{"stopComputation": {"computation_id": "1"}}`,
		`{"agentStateReq": {"id": "1"}}`, `{"disconnectReq": {}}`} {
		f.Add(cvmstest.Bytes("ServerStreamMessage", s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseServer(b)
		if err != nil {
			return
		}
		p := cvmstest.New("ServerStreamMessage", `{}`)
		if err := proto.Unmarshal(b, p); err != nil {
			if m.request == nil { // whose inside is read later
				t.Fatalf("protobuf does not take it: %v", err)
			}
			return
		}
		says := cvmstest.JSON(p)
		for name, has := range map[string]bool{
			"runReqChunks": m.chunk != nil, "runReq": m.request != nil, "stopComputation": m.stop != nil, "agentStateReq": m.state != nil, "disconnectReq": m.disconnect,
		} {
			if _, want := says[name]; want != has {
				t.Errorf("%s: %v, and protobuf says %v", name, has, says)
			}
		}
	})
}
