package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

var errStalled = errors.New("the server takes nothing more")

// A watcher ends a request whose body a server stops to take: the deadline may be far away. Before the body and after it the
// transport's own limits hold.
type watcher struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

func watch(ctx context.Context, after time.Duration) (*watcher, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watcher{ctx: ctx, cancel: cancel, after: after}
	w.timer = time.AfterFunc(after, func() { cancel(errStalled) })
	w.timer.Stop() // until the body is read
	return w, ctx
}

func (w *watcher) body(r io.Reader) io.Reader { return &watchedBody{r, w} }

func (w *watcher) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain says of a request's error that it is the watcher's, if it is.
func (w *watcher) explain(err error) error {
	if err != nil && context.Cause(w.ctx) == errStalled {
		return fmt.Errorf("%w for %v", errStalled, w.after)
	}
	return err
}

type watchedBody struct {
	io.Reader
	w *watcher
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.w.timer.Reset(b.w.after); err != nil {
		b.w.timer.Stop()
	}
	return n, err
}
