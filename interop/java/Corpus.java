import io.grpc.CallOptions;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * One call to each of many targets, so that grpc-java asks for their resources and judges them.
 *
 * <p>The targets stand in a file, one a line. Nobody listens behind them, so that a call that gets as far as a connection is as good
 * as one that is answered. It prints how the calls ended, and ends when its standard input does.
 */
final class Corpus {
  private static final int AT_ONCE = 32;
  private static final int SECONDS = 20;

  /** Messages travel as bytes, of which there are none: what is tested is the way there. */
  private static final MethodDescriptor.Marshaller<byte[]> NOTHING =
      new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] message) {
          return new ByteArrayInputStream(message);
        }

        @Override
        public byte[] parse(InputStream stream) {
          return new byte[0];
        }
      };

  private static final MethodDescriptor<byte[], byte[]> METHOD =
      MethodDescriptor.<byte[], byte[]>newBuilder()
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("corpus.Service/Call")
          .setRequestMarshaller(NOTHING)
          .setResponseMarshaller(NOTHING)
          .build();

  private static Status ended(ManagedChannel channel) {
    try {
      CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(SECONDS, TimeUnit.SECONDS);
      ClientCalls.blockingUnaryCall(channel, METHOD, options, new byte[0]);
      return Status.OK;
    } catch (RuntimeException failure) {
      return Status.fromThrowable(failure);
    }
  }

  /** Whether it is what it was told that the client cannot bear, though it has refused nothing. */
  private static boolean isOwnFault(Status ended) {
    String said = String.valueOf(ended.getDescription());
    return said.contains("failed to parse service config") || said.contains("Panic!");
  }

  public static void main(String[] args) throws Exception {
    // Open to the end: what they refuse is looked up at the control plane, as long as they are there.
    List<ManagedChannel> channels = new ArrayList<>();
    Queue<String> broken = new ConcurrentLinkedQueue<>();
    ExecutorService threads = Executors.newFixedThreadPool(AT_ONCE);
    for (String target : Files.readAllLines(Path.of(args[0]))) {
      ManagedChannel channel = Grpc.newChannelBuilder("xds:///" + target, InsecureChannelCredentials.create()).build();
      channels.add(channel);
      threads.execute(
          () -> {
            Status ended = ended(channel);
            System.out.println(target + " " + ended);
            if (isOwnFault(ended)) {
              broken.add(target + ": " + ended.getDescription());
            }
          });
    }
    threads.shutdown();
    threads.awaitTermination(Long.MAX_VALUE, TimeUnit.NANOSECONDS);
    System.out.println("all asked " + String.join("; ", broken));
    while (System.in.read() >= 0) {}
    System.exit(0);
  }
}
