package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/mdlayher/vsock"
)

// VsockHost is the host part of every URL for VsockClient.
const VsockHost = "host"

// VsockClient speaks to one port of the host (CID 2): see HostClient.
func VsockClient(port uint32) *http.Client {
	return HostClient(func(ctx context.Context) (net.Conn, error) {
		c, err := vsock.DialContext(ctx, vsock.Host, port, nil)
		if err != nil {
			return nil, err // not c: a nil *vsock.Conn in the interface is not nil
		}
		return c, nil
	})
}

// HostClient speaks HTTP/1.1 to a host, over connections that dial makes. Only requests to http://host/ are carried; redirects are
// refused, so are answers with more than 64 KiB of header. Bodies are the caller's to bound, time is ctx's.
func HostClient(dial func(context.Context) (net.Conn, error)) *http.Client {
	var h1 http.Protocols
	h1.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				if addr != VsockHost+":80" {
					return nil, fmt.Errorf("address %s is not behind the vsock; use http://%s/", addr, VsockHost)
				}
				return dial(ctx)
			},
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				return nil, fmt.Errorf("https over vsock is not spoken; use http://%s/", VsockHost)
			},
			Protocols:              &h1,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           2,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("redirect refused")
		},
	}
}
