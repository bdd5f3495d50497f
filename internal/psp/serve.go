package psp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Port is the guest's vsock port to CID 2 on which the simulation kernel asks (tsm_sim.vsock_port=).
const Port = 1025

const (
	magicSNP    = "TSM1" // then le32 VMPL, report data
	magicTDX    = "TDX1" // then report data
	maxRequests = 8      // connections served at once; further ones wait
	answerTime  = 10 * time.Second
)

// Serve answers report requests for one guest until ctx ends or the listener fails, and returns when every connection
// is closed. It closes l. The wire is that of the simulation kernel:
//
//	-> "TSM1" | le32 VMPL | report data[64]
//	<- le32 length | report | le32 length | certificate table
//
//	-> "TDX1" | report data[64]
//	<- le32 length | quote
//
// A request from below VMPL 0, or one that is not a request, is answered by closing the connection.
func (p *PSP) Serve(ctx context.Context, l net.Listener, launch Launch) error {
	certs, err := p.Certs()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if launch.ReportID == [32]byte{} {
		rand.Read(launch.ReportID[:])
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxRequests)
	for {
		slots <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			l.Close()
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("simulated PSP: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			// The guest sees no more than a closed connection: the error would have no reader.
			_ = p.answer(c, launch, certs)
		})
	}
}

func (p *PSP) answer(c net.Conn, l Launch, certs []byte) error {
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	kind, data, err := readRequest(c)
	if err != nil {
		return err
	}
	var blobs [][]byte
	if kind == evidence.TDX {
		quote, err := p.Quote(l, data)
		if err != nil {
			return err
		}
		blobs = [][]byte{quote}
	} else {
		report, err := p.Report(l, data)
		if err != nil {
			return err
		}
		blobs = [][]byte{report, certs}
	}
	var out []byte
	for _, b := range blobs {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	_, err = c.Write(out)
	return err
}

// readRequest reads what the kernel asks, and not a byte more.
func readRequest(r io.Reader) (kind evidence.Kind, data [64]byte, err error) {
	var word [4]byte
	if _, err := io.ReadFull(r, word[:]); err != nil {
		return "", data, err
	}
	switch got := string(word[:]); got {
	case magicSNP:
		if _, err := io.ReadFull(r, word[:]); err != nil {
			return "", data, err
		}
		if vmpl := binary.LittleEndian.Uint32(word[:]); vmpl != 0 {
			return "", data, fmt.Errorf("report request: VMPL %d, the simulated guest runs at 0", vmpl)
		}
		kind = evidence.SNP
	case magicTDX:
		kind = evidence.TDX
	default:
		return "", data, fmt.Errorf("report request: starts with %q, want %q or %q", got, magicSNP, magicTDX)
	}
	_, err = io.ReadFull(r, data[:])
	return kind, data, err
}
