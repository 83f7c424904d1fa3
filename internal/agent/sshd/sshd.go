// Package sshd is the agent's own ssh server, for images that bring none: root
// logs in with a key, gets a shell, a command or sftp, and may reach
// addresses inside the guest. It serves one connection that somebody else
// accepted; it listens nowhere, knows no passwords and no other users.
package sshd

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Limits of a connection.
const (
	handshakeTime = 60 * time.Second // keys are slow under emulation
	maxChannels   = 128
	maxVariables  = 256
)

// Config is what a connection is served with.
type Config struct {
	// HostKey is the guest's private key, in OpenSSH's PEM.
	HostKey []byte
	// Authorized are the lines of authorized_keys that let root in.
	Authorized []byte
	// Root is the directory whose /etc/passwd and /etc/environment count;
	// "" is "/". Commands always run in the real one.
	Root string
	// Group is the control group directory commands start in, or "".
	Group string
}

// Serve speaks the server's side on conn until the client leaves or ctx ends,
// and closes it. Commands that still run then get SIGHUP.
func Serve(ctx context.Context, conn net.Conn, c Config) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	server, err := c.server()
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	sc, channels, requests, err := ssh.NewServerConn(conn, server)
	if err != nil {
		return fmt.Errorf("ssh handshake: %w", err)
	}
	defer sc.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { ssh.DiscardRequests(requests) })

	login := readLogin(c.Root)
	room := make(chan struct{}, maxChannels)
	for nc := range channels {
		select {
		case room <- struct{}{}:
		default:
			_ = nc.Reject(ssh.ResourceShortage, "too many channels")
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			c.channel(ctx, login, nc)
		})
	}
	return nil
}

func (c Config) channel(ctx context.Context, login login, nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		s := &session{ch: ch, login: login, group: c.Group}
		s.serve(ctx, requests)
	case "direct-tcpip", "direct-streamlocal@openssh.com":
		forward(ctx, nc)
	default:
		_ = nc.Reject(ssh.UnknownChannelType, "not supported")
	}
}

var errKey = errors.New("this key is not authorized")

func (c Config) server() (*ssh.ServerConfig, error) {
	signer, err := ssh.ParsePrivateKey(c.HostKey)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	keys := parseAuthorized(c.Authorized)
	s := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-banger",
		MaxAuthTries:  20, // an ssh-agent may offer many keys
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() != "root" {
				return nil, fmt.Errorf("user %q: only root can log in here", meta.User())
			}
			offered := key.Marshal()
			for _, k := range keys {
				if subtle.ConstantTimeCompare(k, offered) == 1 {
					return &ssh.Permissions{}, nil
				}
			}
			return nil, errKey
		},
	}
	s.AddHostKey(signer)
	return s, nil
}

// parseAuthorized gives the keys of authorized_keys. A line with options is
// left out: those options would not be kept.
func parseAuthorized(b []byte) [][]byte {
	var keys [][]byte
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err == nil && len(options) == 0 {
			keys = append(keys, key.Marshal())
		}
	}
	return keys
}
