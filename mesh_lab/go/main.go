// The order mesh in Go, on NATS's official client: the same orders on the same subjects under the same ids as in Python,
// for readers who come from Go, and for an honest comparison. By hand, on servers of your own:
//
//	xz -dc ../orders/data/cdnow_master.txt.xz > orders.txt
//	NATS_URL=nats://127.0.0.1:4222 go run . orders
//
// NATS_USER and NATS_PASSWORD say as whom it connects; any user of the machine could read arguments.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const within = 2 * time.Minute // for all that a command does

// commands are what the program can do. The last five are roles of processes that the others start.
var commands = map[string]func(*session) report{
	"orders": orders, "publish": publish, "consume": consume, "end-to-end": endToEnd,
	"publisher": place, "worker": work, "reader": read, "sender": send, "counter": count,
}

// report is what a command prints, as JSON. Its clock is the machine's: one process may start what another one stops.
type report struct {
	BeganNs  int64             `json:"began_ns"`
	EndedNs  int64             `json:"ended_ns"`
	Server   string            `json:"server_version"`
	Received int               `json:"received"`
	Totals   Totals            `json:"totals"`
	Events   map[string]Totals `json:"events"`
	Doubled  int               `json:"doubled"`
}

// session is a connection to the servers, with JetStream, and what the command line says.
type session struct {
	*nats.Conn
	js                                      jetstream.JetStream
	urls, file                              string
	count, window, batch, replicas, workers int
	ackAll, child                           bool
}

func main() {
	log.SetFlags(0)
	s := session{urls: os.Getenv("NATS_URL")}
	flag.StringVar(&s.file, "file", "orders.txt", "the data set, as text")
	flag.IntVar(&s.count, "count", 0, "messages or orders; 0 for all of the data set")
	flag.IntVar(&s.window, "window", 4_000, "messages that may be unacknowledged, or prefetched")
	flag.IntVar(&s.batch, "batch", 1, "end-to-end: orders in a message")
	flag.BoolVar(&s.ackAll, "ack-all", false, "consume, end-to-end: acknowledge many messages with one")
	flag.IntVar(&s.replicas, "replicas", 1, "orders: copies of the stream")
	flag.IntVar(&s.workers, "workers", 2, "orders: worker processes")
	flag.BoolVar(&s.child, "child", false, "end with standard input, which the parent holds")
	flag.Parse()
	name := flag.Arg(0)
	if name == "version" {
		fmt.Printf("%s, nats.go %s\n", runtime.Version(), nats.Version)
		return
	}
	log.SetPrefix(name + ": ")
	command, ok := commands[name]
	if !ok {
		log.Fatal("expected orders, publish, consume, end-to-end or version")
	}
	time.AfterFunc(within, func() { log.Fatalf("not done after %v", within) })
	if s.child {
		go func() {
			io.Copy(io.Discard, os.Stdin) // until the parent is done, or gone
			os.Exit(0)
		}()
	}
	s.connect(s.urls)
	found := command(&s)
	found.Server = s.ConnectedServerVersion()
	check(json.NewEncoder(os.Stdout).Encode(found))
}

// check ends the process at an error: a run that is not exact has no result.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// must returns a value that came without an error.
func must[T any](value T, err error) T {
	check(err)
	return value
}

// connect connects to the first of the servers that answers.
func (s *session) connect(urls string) {
	user := nats.UserInfo(os.Getenv("NATS_USER"), os.Getenv("NATS_PASSWORD"))
	s.Conn = must(nats.Connect(urls, user, nats.DontRandomize(), nats.Name("go-"+flag.Arg(0))))
	s.js = must(jetstream.New(s.Conn, jetstream.WithPublishAsyncMaxPending(s.window),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, msg *nats.Msg, err error) {
			log.Fatalf("%s is not stored: %v", msg.Subject, err)
		})))
}

// publish stores a message without waiting for its acknowledgement; while the window is full, it waits.
func (s *session) publish(msg *nats.Msg) jetstream.PubAckFuture {
	// By default it would give up after 200 ms, as while a leader is elected.
	return must(s.js.PublishMsgAsync(msg, jetstream.WithStallWait(within)))
}

// publishAll stores messages, and reports how long that took until the last one was acknowledged.
func (s *session) publishAll(messages int, message func(int) *nats.Msg) report {
	began := time.Now().UnixNano()
	for i := range messages {
		s.publish(message(i))
	}
	<-s.js.PublishAsyncComplete()
	return report{BeganNs: began, EndedNs: time.Now().UnixNano()}
}

// consumeAll hands over one message after the other, until the last one was handled.
func (s *session) consumeAll(from jetstream.Consumer, handle func(jetstream.Msg) (last bool)) {
	done := make(chan struct{})
	consuming := must(from.Consume(func(msg jetstream.Msg) {
		if handle(msg) {
			close(done)
		}
	}, jetstream.PullMaxMessages(s.window)))
	<-done
	consuming.Stop()
	<-consuming.Closed()
	check(s.Flush()) // the server has the acknowledgements
}

// child is another process of this program, which runs one command.
type child struct {
	*exec.Cmd
	stdin  io.Closer
	stdout bytes.Buffer
}

// start starts a child with the flags of this process, and more.
func start(command, urls string, more ...string) *child {
	flags := slices.Concat(os.Args[1:len(os.Args)-flag.NArg()], []string{"-child"}, more)
	c := &child{Cmd: exec.Command(must(os.Executable()), append(flags, command)...)}
	c.Env, c.Stdout, c.Stderr = append(os.Environ(), "NATS_URL="+urls), &c.stdout, os.Stderr
	c.stdin = must(c.StdinPipe())
	check(c.Start())
	return c
}

// report waits until a child has ended, and returns what it printed.
func (c *child) report() (found report) {
	check(c.Wait())
	check(json.Unmarshal(c.stdout.Bytes(), &found))
	return found
}
