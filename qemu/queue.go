package qemu

import (
	"fmt"
	"net"
	"sync"
)

// A queue is a net.Listener whose connections are handed to it.
type queue struct {
	port  uint32
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// backlog is how many connections of the guest wait to be accepted.
const backlog = 16

func newQueue(port uint32) *queue {
	return &queue{port: port, conns: make(chan net.Conn, backlog), done: make(chan struct{})}
}

// deliver hands over a connection; false says that it is refused.
func (q *queue) deliver(c net.Conn) bool {
	select {
	case <-q.done:
		return false
	default:
	}
	select {
	case q.conns <- c:
		return true
	default:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case <-q.done:
		return nil, net.ErrClosed
	case c := <-q.conns:
		return c, nil
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// drop closes what was delivered and not accepted. Nothing is delivered any more.
func (q *queue) drop() {
	for {
		select {
		case c := <-q.conns:
			c.Close()
		default:
			return
		}
	}
}

func (q *queue) Addr() net.Addr { return addr(q.port) }

type addr uint32

func (a addr) Network() string { return "vsock" }
func (a addr) String() string  { return fmt.Sprintf("host:%d", uint32(a)) }
