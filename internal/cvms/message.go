package cvms

import (
	"errors"
	"fmt"
	"time"
)

// What a server says (ServerStreamMessage): one of the five.
type serverMessage struct {
	chunk      *chunk
	request    []byte  // a ComputationRunReq, not yet read, as a part of the message; nil: none
	stop       *string // computation_id
	state      *string // id of the question
	disconnect bool
}

// A chunk is a part of a ComputationRunReq.
type chunk struct {
	data []byte // a part of the message
	id   string
	last bool
}

// parseServer reads one message. Of a kind that is not known it is empty.
func parseServer(b []byte) (m serverMessage, err error) {
	said := false
	err = scan(b, func(f field) error {
		if f.number > 5 {
			return nil
		}
		if said {
			return errors.New("it says two things")
		}
		said = true
		switch f.number {
		case 1:
			m.chunk = new(chunk)
			return f.message("runReqChunks", m.chunk.take)
		case 2:
			m.request = f.bytes
			return f.want(wireBytes, "runReq")
		case 3:
			m.stop = new(string)
			return readID(f, "stopComputation", m.stop)
		case 4:
			m.state = new(string)
			return readID(f, "agentStateReq", m.state)
		}
		m.disconnect = true
		return readID(f, "disconnectReq", new(string))
	})
	if err != nil {
		return serverMessage{}, fmt.Errorf("message of the server: %w", err)
	}
	return m, nil
}

func (c *chunk) take(f field) error {
	switch f.number {
	case 1:
		c.data = f.bytes
		return f.want(wireBytes, "data")
	case 2:
		return f.text("id", &c.id)
	case 3:
		return f.flag("is_last", &c.last)
	}
	return nil
}

// readID reads a message of which only field 1, a string, is wanted.
func readID(f field, name string, to *string) error {
	return f.message(name, func(f field) error {
		if f.number != 1 {
			return nil
		}
		return f.text("id", to)
	})
}

// What an agent says (ClientStreamMessage). It has no log: what would be in one is the owner's.

func eventMessage(id, kind, status string, at time.Time) []byte {
	stamp := appendVarint(appendVarint(nil, 1, uint64(max(0, at.Unix()))), 2, uint64(at.Nanosecond()))
	m := appendText(nil, 1, kind)
	m = appendMessage(m, 2, stamp)
	m = appendText(m, 3, id)
	m = appendText(m, 5, "agent")
	m = appendText(m, 6, status)
	return appendMessage(nil, 2, m)
}

func runMessage(id, problem string) []byte {
	return appendMessage(nil, 3, appendText(appendText(nil, 1, id), 2, problem))
}

func stoppedMessage(id string) []byte { return appendMessage(nil, 4, appendText(nil, 1, id)) }

func stateMessage(id, state string) []byte {
	return appendMessage(nil, 5, appendText(appendText(nil, 1, id), 2, state))
}

// reportMessage is the vTPM report of an agent that has no client certificate: empty.
func reportMessage() []byte { return appendMessage(nil, 6, nil) }
