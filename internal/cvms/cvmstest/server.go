// Package cvmstest is a computation server of Cocos for tests: grpc-go, and messages by protobuf's own reflection, so that nothing is
// shared with package cvms but the specification.
package cvmstest

import (
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

// New makes the message of a type from its JSON, in which bytes are base64. A test that gives another has a mistake, and New panics.
func New(kind, text string) proto.Message {
	m := dynamicpb.NewMessage(descriptor(kind))
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		panic(fmt.Sprintf("%s: %v", kind, err))
	}
	return m
}

// Bytes is New, on the wire.
func Bytes(kind, text string) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(New(kind, text))
	if err != nil {
		panic(err)
	}
	return b
}

// Parse reads a message of a type. All that is not known is an error.
func Parse(kind string, b []byte) (proto.Message, error) {
	m := dynamicpb.NewMessage(descriptor(kind))
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	if n := len(m.GetUnknown()); n > 0 {
		return nil, fmt.Errorf("%s: %d bytes of unknown fields", kind, n)
	}
	return m, nil
}

// JSON is m in protobuf's JSON with the names of the schema, in which what is not set is missing.
func JSON(m proto.Message) map[string]any {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	return v
}

// A Stream is one agent, as a handler has it.
type Stream struct{ grpc.ServerStream }

// Say sends a ServerStreamMessage, given as JSON. That the agent is gone is for the handler to find by Hear.
func (s *Stream) Say(text string) { s.SendMsg(New("ServerStreamMessage", text)) }

// Hear returns the agent's next message in a few words, such as "1: Running/Starting" for an event of computation 1.
func (s *Stream) Hear() (string, error) {
	m := dynamicpb.NewMessage(descriptor("ClientStreamMessage"))
	if err := s.RecvMsg(m); err != nil {
		return "", err
	}
	said := JSON(m)
	for kind, v := range said {
		v := v.(map[string]any)
		switch kind {
		case "agent_event":
			if at, ok := v["timestamp"].(map[string]any); ok && at["seconds"] != nil && v["details"] == nil && v["originator"] == "agent" {
				return fmt.Sprintf("%v: %v/%v", v["computation_id"], v["event_type"], v["status"]), nil
			}
		case "run_res":
			if v["error"] == nil {
				return fmt.Sprintf("%v: taken", v["computation_id"]), nil
			}
			return fmt.Sprintf("%v: refused, %v", v["computation_id"], v["error"]), nil
		case "stopComputationRes":
			return fmt.Sprintf("%v: stopped", v["computation_id"]), nil
		case "agentStateRes":
			return fmt.Sprintf("%v? %v", v["id"], v["state"]), nil
		case "vTPMattestationReport":
			return fmt.Sprintf("report of %d", len(v)), nil
		}
	}
	return fmt.Sprint(said), nil
}

// HearAll returns all that the agent says until it has ended the call, or the call has been broken off.
func (s *Stream) HearAll() (all []string) {
	for {
		said, err := s.Hear()
		if err != nil {
			return all
		}
		all = append(all, said)
	}
}

// Request sends a ComputationRunReq, given as JSON, as Cocos' server does: in chunks of size bytes, and an empty last one.
func (s *Stream) Request(text string, size int) {
	m := New("ComputationRunReq", text)
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	id, _ := JSON(m)["id"].(string)
	for {
		n := min(size, len(b))
		s.Say(Chunk(id, b[:n], n == 0))
		if n == 0 {
			return
		}
		b = b[n:]
	}
}

// Chunk is a message for Say: a part of a request.
func Chunk(id string, data []byte, last bool) string {
	b, err := json.Marshal(map[string]any{"runReqChunks": map[string]any{"data": data, "id": id, "is_last": last}})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// A Server is one of grpc-go. The test ends it.
type Server struct {
	Addr string // 127.0.0.1 and a free port
	end  func()
}

// Serve starts a server that answers each agent by handle, in a goroutine of its own.
func Serve(t testing.TB, handle func(*Stream) error) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 10))
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "cvms.Service", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Process", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			return handle(&Stream{s})
		}}},
	}, nil)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	s := &Server{Addr: l.Addr().String()}
	s.end = sync.OnceFunc(func() {
		g.Stop() // and waits for the handlers
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.end)
	return s
}

// Close breaks every stream off, as a server that dies does, and returns when all handlers have.
func (s *Server) Close() { s.end() }
