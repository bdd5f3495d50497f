package main

import (
	"context"

	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

type fetch func(context.Context, []kbs.Want) (*kbs.Grant, error)

// onFetch puts f between the boot and its brokers.
func (m *machine) onFetch(f func(ctx context.Context, wants []kbs.Want, next fetch) (*kbs.Grant, error)) {
	open := m.openBrokers
	m.openBrokers = func(b []kbs.Broker, dev tee.Device, initdata []byte) (keyBrokers, error) {
		next, err := open(b, dev, initdata)
		if err != nil {
			return nil, err
		}
		return watched{next, f}, nil
	}
}

type watched struct {
	keyBrokers
	f func(context.Context, []kbs.Want, fetch) (*kbs.Grant, error)
}

func (w watched) Fetch(ctx context.Context, wants []kbs.Want) (*kbs.Grant, error) {
	return w.f(ctx, wants, w.keyBrokers.Fetch)
}
