package sshd

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"
)

// forward joins a channel to an address inside the guest.
func forward(ctx context.Context, nc ssh.NewChannel) {
	network, address, err := target(nc.ChannelType(), nc.ExtraData())
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "bad address")
		return
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(requests) })
	wg.Go(func() {
		_, _ = io.Copy(conn, ch)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	_, _ = io.Copy(ch, conn)
	_ = ch.CloseWrite()
	// The client closes its side once it has seen our end and sent its own.
	wg.Wait()
}

// target reads where a forwarding channel is to go.
func target(kind string, extra []byte) (network, address string, err error) {
	if kind == "direct-tcpip" {
		var to struct {
			Host       string
			Port       uint32
			Originator string
			OriginPort uint32
		}
		if err := ssh.Unmarshal(extra, &to); err != nil {
			return "", "", err
		}
		if to.Port == 0 || to.Port > 65535 {
			return "", "", fmt.Errorf("port %d", to.Port)
		}
		return "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))), nil
	}
	var to struct {
		Path     string
		Reserved string
		Unused   uint32
	}
	if err := ssh.Unmarshal(extra, &to); err != nil {
		return "", "", err
	}
	return "unix", to.Path, nil
}
